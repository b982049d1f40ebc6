package share

import (
	"bufio"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"sampan/proto"
)

// op is a change of the host that the guest is to be told of. For a RENAME a
// missing directory, dir or to, stands for somewhere that nobody watches.
type op struct {
	seq  uint32 // 0 until it is sent
	kind proto.Replay_Kind
	mode uint32 // S_IFMT bits
	dir  *node
	name string // empty: dir itself, a file
	to   *node
	// toName may be any where to is missing, as name where dir is.
	toName string

	// since is a time before the change.
	since time.Time

	// Of the requests that the guest makes of it. Guarded by events.mu.
	subject *node // held until it is over: what is moved or removed
	over    bool
	refused atomic.Bool // it must not be told
}

// from and dest are the names in the share that the op changes.
func (o *op) from() entryKey { return entryKey{o.dir, o.name} }

func (o *op) dest() entryKey {
	if o.kind == proto.Replay_RENAME {
		return entryKey{o.to, o.toName}
	}
	return o.from()
}

// departs and arrives tell whether k is gone, or there, after the op.
func (o *op) departs(k entryKey) bool {
	return (o.kind == proto.Replay_DELETE || o.kind == proto.Replay_RENAME) && o.from() == k
}

func (o *op) arrives(k entryKey) bool {
	return (o.kind == proto.Replay_CREATE || o.kind == proto.Replay_RENAME) && o.dest() == k
}

const (
	// maxQueue is how many changes may wait for the guest.
	maxQueue = 1 << 16
	// window is how many are sent before the first is answered.
	window = 32
	// calm is how many may wait for rescan to add more.
	calm = 1024
)

// queue holds the ops in their order. Guarded by events.mu.
type queue struct {
	urgent  []*op              // not sent yet, before waiting; the last is the first
	waiting []*op              // not sent yet
	sent    map[uint32]*op     // not answered yet
	byEntry map[entryKey][]*op // both, in order
	last    uint32             // seq given out last
}

// length is how many are not sent yet.
func (q *queue) length() int { return len(q.urgent) + len(q.waiting) }

func newQueue() queue {
	return queue{sent: map[uint32]*op{}, byEntry: map[entryKey][]*op{}}
}

// push adds o, unless an equal change of content or attributes waits for the
// same file; or, in a flood, its creation.
func (q *queue) push(o *op) (merged bool) {
	if o.kind != proto.Replay_RENAME && o.kind != proto.Replay_CREATE && o.kind != proto.Replay_DELETE {
		same := q.byEntry[o.from()]
		for i := len(same) - 1; i >= 0 && same[i].seq == 0; i-- {
			if same[i].kind == o.kind || same[i].kind == proto.Replay_CREATE && o.kind != proto.Replay_WRITTEN && q.length() >= calm {
				return true
			}
			if same[i].departs(o.from()) || same[i].arrives(o.from()) {
				break
			}
		}
	}
	q.waiting = append(q.waiting, o)
	q.index(o)
	return false
}

// index adds o behind all others of its names.
func (q *queue) index(o *op) {
	for i, k := range []entryKey{o.from(), o.dest()} {
		if k.dir != nil && (i == 0 || k != o.from()) {
			q.byEntry[k] = append(q.byEntry[k], o)
		}
	}
}

// next takes the first op for sending; nil when there is none, or enough are
// under way.
func (q *queue) next() *op {
	if q.length() == 0 || len(q.sent) >= window {
		return nil
	}
	var o *op
	if last := len(q.urgent) - 1; last >= 0 {
		o = q.urgent[last]
		q.urgent = slices.Delete(q.urgent, last, last+1)
	} else {
		o = q.waiting[0]
		q.waiting[0] = nil
		if q.waiting = q.waiting[1:]; len(q.waiting) == 0 {
			q.waiting = nil // what they were in may go
		}
	}
	q.last = q.last%(1<<30) + 1
	o.seq = q.last
	q.sent[o.seq] = o
	return o
}

// done takes an op out.
func (q *queue) done(o *op) {
	delete(q.sent, o.seq)
	for _, k := range []entryKey{o.from(), o.dest()} {
		rest := q.byEntry[k][:0]
		for _, other := range q.byEntry[k] {
			if other != o {
				rest = append(rest, other)
			}
		}
		if len(rest) == 0 {
			delete(q.byEntry, k)
		} else {
			q.byEntry[k] = rest
		}
	}
}

// later tells whether after o there is one that departs from k, or arrives at it.
func (q *queue) later(o *op, k entryKey, is func(*op, entryKey) bool) bool {
	after := false
	for _, other := range q.byEntry[k] {
		if after && is(other, k) {
			return true
		}
		after = after || other == o
	}
	return false
}

// add queues a change.
func (e *events) add(o *op) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o.since.IsZero() {
		o.since = e.current
	}
	switch {
	case e.closed:
		return
	case e.queue.length() >= maxQueue:
		e.count.lost.Add(1)
		e.missLocked(o.since)
		return
	case e.queue.push(o):
		e.count.merged.Add(1)
		return
	}
	e.signal()
}

func (e *events) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

const (
	dialTimeout = 5 * time.Second
	// redialWait is the least that passes before the agent is dialled again, and
	// maxRedialWait the most, after several failures.
	redialWait    = time.Second
	maxRedialWait = 30 * time.Second
)

// send brings the ops to the agent until close.
func (e *events) send() {
	wait := redialWait
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.wake:
		}
		met, err := e.session()
		if err != nil && e.ctx.Err() == nil {
			e.log.Warn("containers are not told of changes in shared folders", "error", err)
		}
		e.abandon()
		if met {
			wait = redialWait
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRedialWait)
	}
}

// session sends ops over one stream until that ends. met tells whether the agent
// was there.
func (e *events) session() (met bool, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, dialTimeout)
	defer cancel()
	stream, err := e.dial(ctx)
	if err != nil {
		return false, err
	}
	// The agent may do other things in its thread once the stream is closed.
	closeStream := func() { e.thread.Store(0); stream.Close() }
	defer closeStream()
	defer context.AfterFunc(e.ctx, closeStream)()
	in := bufio.NewReader(stream)
	limited := protodelim.UnmarshalOptions{MaxSize: proto.MaxReplay}
	var hello proto.Replayed
	inTime := context.AfterFunc(ctx, closeStream)
	if err := limited.UnmarshalFrom(in, &hello); err != nil {
		return false, err
	}
	inTime()
	e.thread.Store(hello.Thread)
	e.calmed()
	ended := make(chan error, 1)
	e.wg.Go(func() {
		for {
			var r proto.Replayed
			if err := limited.UnmarshalFrom(in, &r); err != nil {
				ended <- err
				return
			}
			e.answered(&r)
		}
	})
	out := bufio.NewWriterSize(stream, 32<<10)
	for {
		for o := e.next(); o != nil; o = e.next() {
			if _, err := protodelim.MarshalTo(out, e.message(o)); err != nil {
				return true, err
			}
		}
		if err := out.Flush(); err != nil {
			return true, err
		}
		select {
		case <-e.wake:
		case err := <-ended:
			e.log.Debug("the stream of file events has ended", "error", err)
			return true, nil
		}
	}
}

func (e *events) next() *op {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.queue.next()
}

// calmed has rescans see whether there is room for more.
func (e *events) calmed() {
	select {
	case e.space <- struct{}{}:
	default:
	}
}

// elsewhere is the name in the share's root that stands for where nobody looks.
const elsewhere = ".elsewhere"

func (e *events) message(o *op) *proto.Replay {
	m := &proto.Replay{Seq: o.seq, Kind: o.kind, Mode: o.mode, Name: []byte(o.name), ToName: []byte(o.toName)}
	m.Dir, m.Path = e.where(o.dir)
	if o.kind != proto.Replay_RENAME {
		return m
	}
	m.ToDir, m.ToPath = e.where(o.to)
	if o.dir == nil {
		m.Name = []byte(elsewhere)
	}
	if o.to == nil {
		m.ToName = []byte(elsewhere)
	}
	return m
}

func (e *events) where(n *node) (id uint64, path []byte) {
	if n == nil {
		return rootID, nil
	}
	path = []byte(e.f.path(n))
	if len(path) > unix.PathMax {
		path = nil
	}
	return n.id, path
}

// answered ends an op.
func (e *events) answered(r *proto.Replayed) {
	var held *node // to put without mu, which forgetting it takes
	defer func() { e.f.putAny(held) }()
	e.mu.Lock()
	defer e.mu.Unlock()
	o := e.queue.sent[r.Seq]
	if o == nil {
		return
	}
	held, o.over = o.subject, true
	e.queue.done(o)
	if o.dir != nil && (o.kind == proto.Replay_DELETE || o.kind == proto.Replay_RENAME) {
		if w := e.byID[fileID{o.dir.dev, o.dir.ino}]; w != nil {
			e.removedLocked(w, o.name)
		}
	}
	e.signal() // there is room for another
	if e.queue.length() < calm {
		e.calmed()
	}
	errno := unix.Errno(r.Errno)
	switch {
	case errno == 0:
		e.count.replayed.Add(1)
	case errno == unix.ESTALE: // the guest has forgotten the directory: nobody watches
		e.count.void.Add(1)
	case o.kind == proto.Replay_RENAME:
		e.count.degraded.Add(1)
		e.split(o)
	case o.refused.Load(), errno == unix.ENOENT:
		e.count.void.Add(1)
	default:
		e.count.lost.Add(1)
		e.log.Debug("a change on the host was not told", "kind", o.kind, "name", o.name, "error", errno)
	}
}

// split tells of a rename that couldn't be told as such as of a removal and a
// creation, before all else.
func (e *events) split(o *op) {
	var halves []*op
	if o.dir != nil {
		halves = append(halves, &op{kind: proto.Replay_DELETE, mode: o.mode, dir: o.dir, name: o.name, since: o.since})
	}
	if o.to != nil {
		halves = append(halves, &op{kind: proto.Replay_CREATE, mode: o.mode, dir: o.to, name: o.toName, since: o.since})
	}
	for _, h := range slices.Backward(halves) {
		e.queue.urgent = append(e.queue.urgent, h)
	}
	for _, h := range halves {
		k := h.from()
		// Before those that wait, behind those that are sent already.
		i := 0
		for i < len(e.queue.byEntry[k]) && e.queue.byEntry[k][i].seq != 0 {
			i++
		}
		list := append([]*op{}, e.queue.byEntry[k][:i]...)
		e.queue.byEntry[k] = append(append(list, h), e.queue.byEntry[k][i:]...)
	}
}

// abandon gives up all ops, as there is nobody to tell: what they were about is
// looked for when there is somebody again.
func (e *events) abandon() {
	var held []*node
	e.mu.Lock()
	old := e.queue
	e.queue = newQueue()
	e.queue.last = old.last
	for _, o := range slices.Concat(old.urgent, old.waiting) {
		e.missLocked(o.since)
	}
	for _, o := range old.sent {
		e.missLocked(o.since)
		o.over = true
		held = append(held, o.subject)
	}
	e.count.lost.Add(int64(len(old.sent) + old.length()))
	if len(e.byWD) == 0 { // the guest knows nothing any more
		e.missed = time.Time{}
	}
	if !e.missed.IsZero() {
		e.signal()
	}
	e.mu.Unlock()
	for _, n := range held {
		e.f.putAny(n)
	}
}
