package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/boot"
	"sampan/proto"
)

const (
	// streamWait is how long a stream waits for its process, and a process for
	// its streams (agent.proto, StartRequest.streams).
	streamWait = 10 * time.Second
	// maxPending bounds streams that wait for a process.
	maxPending = 1024
)

// streamKey names a process's standard stream.
type streamKey struct{ container, exec, stream string }

// Streams is the table of standard streams that one side has and the other is
// still to ask for. It is safe for use by several goroutines.
type Streams struct {
	log *slog.Logger

	mu      sync.Mutex
	pending map[streamKey]*pending
	wanted  map[streamKey]chan net.Conn // of capacity 1
	replays map[net.Conn]struct{}
	ended   bool
}

type pending struct {
	conn  net.Conn
	timer *time.Timer
}

// NewStreams returns an empty table.
func NewStreams(log *slog.Logger) *Streams {
	return &Streams{log: log, pending: map[streamKey]*pending{}, wanted: map[streamKey]chan net.Conn{}, replays: map[net.Conn]struct{}{}}
}

// Serve accepts streams until the listener is closed. Each is read and served
// by a goroutine of its own, which ends with the stream.
func (t *Streams) Serve(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("accept streams: %w", err)
		}
		go t.serve(conn)
	}
}

func (t *Streams) serve(conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(streamWait))
	h, err := proto.ReadHeader(peekLine(conn))
	if err != nil {
		t.log.Warn(err.Error())
		conn.Close()
		return
	}
	conn.SetReadDeadline(time.Time{})
	switch h.Kind {
	case proto.StreamStdio:
		t.offer(streamKey{h.Container, h.Exec, h.Stream}, conn)
	case proto.StreamArchive:
		t.offer(streamKey{h.Container, archiveExec, h.Stream}, conn)
	case proto.StreamDial:
		if err := dial(conn, h.Network, h.Address); err != nil {
			t.log.Warn("stream: " + err.Error())
		}
	case proto.StreamListeners:
		if err := listeners(conn); err != nil {
			t.log.Warn("stream: " + err.Error())
		}
	case proto.StreamReplays:
		if err := t.replay(conn); err != nil {
			t.log.Warn("stream: " + err.Error())
		}
	default:
		t.log.Warn("stream of unknown kind", "kind", h.Kind)
		conn.Close()
	}
}

// replay is Replay until endReplays.
func (t *Streams) replay(conn net.Conn) error {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return conn.Close()
	}
	t.replays[conn] = struct{}{}
	t.mu.Unlock()
	err := Replay(conn, boot.HostDir)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.replays, conn)
	if t.ended {
		return nil
	}
	return err
}

// endReplays has the share be used no more, so that it can be unmounted.
func (t *Streams) endReplays() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for conn := range t.replays {
		conn.Close()
	}
}

// offer gives a stream to the process that waits for it, or keeps it for one
// to come. Of two streams with one name the newer counts: the older is left
// from an attempt that failed.
func (t *Streams) offer(k streamKey, conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch, ok := t.wanted[k]; ok {
		delete(t.wanted, k)
		ch <- conn
		return
	}
	if old, ok := t.pending[k]; ok {
		t.dropLocked(k, old)
	}
	if len(t.pending) >= maxPending {
		t.log.Warn("too many streams wait for a process")
		conn.Close()
		return
	}
	p := &pending{conn: conn}
	p.timer = time.AfterFunc(streamWait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.pending[k] == p {
			t.dropLocked(k, p)
		}
	})
	t.pending[k] = p
}

func (t *Streams) dropLocked(k streamKey, p *pending) {
	delete(t.pending, k)
	p.timer.Stop()
	p.conn.Close()
}

// take waits for the streams of a process, by name. Cancelling ctx gives up.
// After an error none is left open.
func (t *Streams) take(ctx context.Context, container, exec string, names []string) (map[string]net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, streamWait)
	defer cancel()
	conns := map[string]net.Conn{}
	for _, n := range names {
		conn, err := t.takeOne(ctx, streamKey{container, exec, n})
		if err != nil {
			closeAll(conns)
			return nil, fmt.Errorf("wait for the host's %s stream: %w", n, err)
		}
		conns[n] = conn
	}
	return conns, nil
}

// coming are streams that the host is opening while something else is done.
type coming struct {
	cancel context.CancelFunc
	done   chan struct{}
	conns  map[string]net.Conn
	err    error
}

// await is take in a goroutine, which ends with what wait or close returns.
func (t *Streams) await(ctx context.Context, container, exec string, names []string) *coming {
	ctx, cancel := context.WithCancel(ctx)
	c := &coming{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.conns, c.err = t.take(ctx, container, exec, names)
	}()
	return c
}

// wait returns what take has.
func (c *coming) wait() (map[string]net.Conn, error) {
	<-c.done
	c.cancel()
	return c.conns, c.err
}

// close gives up, and closes what has come.
func (c *coming) close() {
	c.cancel()
	<-c.done
	closeAll(c.conns)
}

func (t *Streams) takeOne(ctx context.Context, k streamKey) (net.Conn, error) {
	t.mu.Lock()
	if p, ok := t.pending[k]; ok {
		delete(t.pending, k)
		p.timer.Stop()
		if !hungUp(p.conn) {
			t.mu.Unlock()
			return p.conn, nil
		}
		p.conn.Close()
	}
	if _, ok := t.wanted[k]; ok {
		t.mu.Unlock()
		return nil, errors.New("somebody else waits for it")
	}
	ch := make(chan net.Conn, 1)
	t.wanted[k] = ch
	t.mu.Unlock()
	select {
	case conn := <-ch:
		return conn, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	delete(t.wanted, k)
	t.mu.Unlock()
	select {
	case conn := <-ch: // offered in between
		conn.Close()
	default:
	}
	return nil, ctx.Err()
}

// forget closes the streams that wait for a process that won't come.
func (t *Streams) forget(container, exec string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, p := range t.pending {
		if k.container == container && k.exec == exec {
			t.dropLocked(k, p)
		}
	}
}

// hungUp tells whether the other side has closed the whole connection. A mere
// end of what it sends (an empty stdin) is none.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscallConn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || gone
}

func closeAll(conns map[string]net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}
