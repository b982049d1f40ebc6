package engine

import (
	"errors"
	"io"
	"sync"
)

// Stream says where output comes from; the numbers are those of Docker's
// multiplexed stream format.
type Stream byte

// Streams of output. A terminal has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// What waits for one attached client: maxQueue bytes of it in memory, where one
// chunk may exceed it, and maxSpill in a file.
const (
	maxQueue = 1 << 20
	maxSpill = 1 << 30
)

type chunk struct {
	stream Stream
	data   []byte // shared between clients: never modified
}

// hub joins one run of a container with its attached clients. It exists before
// the run, so that a client that attaches first misses nothing.
type hub struct {
	dir    string         // where output for slow clients may be kept
	stdin  *io.PipeReader // nil unless the container's stdin is open
	stdinW *io.PipeWriter

	mu     sync.Mutex
	subs   map[*sub]struct{}
	closed bool
}

func newHub(dir string, openStdin bool) *hub {
	h := &hub{dir: dir, subs: map[*sub]struct{}{}}
	if openStdin {
		h.stdin, h.stdinW = io.Pipe()
	}
	return h
}

// publish logs a chunk, then queues it for each client, waiting for those that
// are behind by more than maxSpill. log may be nil. data must not change
// afterwards.
func (h *hub) publish(log *logWriter, s Stream, data []byte) {
	h.mu.Lock()
	if log != nil {
		log.write(s, data) // under mu: attach with replay neither misses nor repeats
	}
	subs := make([]*sub, 0, len(h.subs))
	for c := range h.subs {
		if c.wants(s) {
			subs = append(subs, c)
		}
	}
	h.mu.Unlock()
	for _, c := range subs {
		c.push(chunk{s, data})
	}
}

// subscribe adds a client. mark, when not nil, is called while no output can
// pass by.
func (h *hub) subscribe(stdout, stderr bool, mark func()) *sub {
	c := &sub{stdout: stdout, stderr: stderr, spill: spill{dir: h.dir}}
	c.cond.L = &c.mu
	h.mu.Lock()
	defer h.mu.Unlock()
	if mark != nil {
		mark()
	}
	if h.closed {
		c.ended = true
		return c
	}
	h.subs[c] = struct{}{}
	c.leaveHub = func() {
		h.mu.Lock()
		delete(h.subs, c)
		h.mu.Unlock()
	}
	return c
}

// close ends every client's stream after what is queued. Idempotent.
func (h *hub) close() {
	h.mu.Lock()
	subs := h.subs
	h.subs, h.closed = map[*sub]struct{}{}, true
	h.mu.Unlock()
	for c := range subs {
		c.end()
	}
	h.closeStdin()
}

// closeStdin makes writes of clients fail.
func (h *hub) closeStdin() {
	if h.stdin != nil {
		h.stdin.CloseWithError(io.ErrClosedPipe)
	}
}

// sub is one client's queue: first the part in memory, then the spill.
type sub struct {
	stdout, stderr bool
	leaveHub       func() // nil when the hub had closed

	mu    sync.Mutex
	cond  sync.Cond
	queue []chunk
	size  int
	spill spill
	ended bool // no more will come
	gone  bool // the client has left
}

func (c *sub) wants(s Stream) bool {
	return s == Stdout && c.stdout || s == Stderr && c.stderr
}

func (c *sub) push(ch chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.gone && (c.size >= maxQueue || c.spill.left() > 0) {
		if c.spill.put(ch) {
			c.cond.Broadcast()
			return
		}
		c.cond.Wait()
	}
	if c.gone {
		return
	}
	c.queue = append(c.queue, ch)
	c.size += len(ch.data)
	c.cond.Broadcast()
}

// errLeft is next's error after leave.
var errLeft = errors.New("the client has left")

// next waits for the next chunk; io.EOF after the last one.
func (c *sub) next() (chunk, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && c.spill.left() == 0 && !c.ended && !c.gone {
		c.cond.Wait()
	}
	switch {
	case c.gone:
		return chunk{}, errLeft
	case len(c.queue) > 0:
	case c.spill.left() > 0:
		ch, err := c.spill.get()
		c.cond.Broadcast()
		return ch, err
	default:
		return chunk{}, io.EOF
	}
	ch := c.queue[0]
	c.queue[0] = chunk{}
	c.queue = c.queue[1:]
	c.size -= len(ch.data)
	c.cond.Broadcast()
	return ch, nil
}

func (c *sub) end() {
	c.mu.Lock()
	c.ended = true
	c.cond.Broadcast()
	c.mu.Unlock()
}

// leave drops the client. Idempotent.
func (c *sub) leave() {
	if c.leaveHub != nil {
		c.leaveHub()
	}
	c.mu.Lock()
	c.gone, c.queue = true, nil
	c.spill.close()
	c.cond.Broadcast()
	c.mu.Unlock()
}
