// Package stream is one direction of a stream connection: a bounded buffer
// between a writer and a reader, either of which may be a program that waits,
// with deadlines as net.Conn has them, or a device that must not.
//
// Two of them make a connection. Each end has its own fate: after EndRead the
// reader still gets what is buffered, after BreakRead nothing more; the first
// error set for an end stays.
//
// Hazard: notifications (New's wake) are called without any lock held, from
// the goroutine of the end that caused them, so the other end may have moved
// on meanwhile.
package stream

import (
	"os"
	"sync"
	"time"
)

// Half is one direction. Make it with New.
type Half struct {
	wake func(Event)

	mu         sync.Mutex
	buf        ring
	readErr    error // what reads get once the buffer is empty
	broken     bool  // reads get readErr at once
	writeErr   error // what writes get
	readCond   sync.Cond
	writeCond  sync.Cond
	readLimit  deadline
	writeLimit deadline
}

// Event is what a blocking call has done, in bytes.
type Event struct{ Read, Written int }

// New makes a Half that buffers up to limit bytes. wake, if not nil, is told
// of each Read and Write that moved something.
func New(limit int, wake func(Event)) *Half {
	h := &Half{wake: wake, buf: ring{limit: limit}}
	h.readCond.L, h.writeCond.L = &h.mu, &h.mu
	return h
}

// Read waits for data, as net.Conn's Read does.
func (h *Half) Read(p []byte) (int, error) {
	n, err := h.read(p)
	if n > 0 && h.wake != nil {
		h.wake(Event{Read: n})
	}
	return n, err
}

func (h *Half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.broken:
			return 0, h.readErr
		case h.readLimit.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.buf.len() > 0:
			n := h.buf.get(p)
			h.writeCond.Broadcast()
			return n, nil
		case h.readErr != nil:
			return 0, h.readErr
		}
		h.readCond.Wait()
	}
}

// Write waits until all of p is buffered, as net.Conn's Write does.
func (h *Half) Write(p []byte) (n int, err error) {
	for {
		k, err := h.writeSome(p[n:])
		n += k
		if k > 0 && h.wake != nil {
			h.wake(Event{Written: k})
		}
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// writeSome waits until there is room for anything at all.
func (h *Half) writeSome(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writeErr != nil:
			return 0, h.writeErr
		case h.writeLimit.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		if n := h.buf.put(p); n > 0 {
			h.readCond.Broadcast()
			return n, nil
		}
		h.writeCond.Wait()
	}
}

// TryWrite buffers all of bufs, or nothing if there is no room for it. What
// comes after the reader has gone is swallowed.
func (h *Half) TryWrite(bufs [][]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken {
		return true
	}
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if n > h.buf.limit-h.buf.len() {
		return false
	}
	for _, b := range bufs {
		h.buf.put(b)
	}
	h.readCond.Broadcast()
	return true
}

// TryRead fills bufs, in order, with at most limit bytes, and never waits.
func (h *Half) TryRead(bufs [][]byte, limit int) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range bufs {
		n += h.buf.get(b[:min(len(b), limit-n)])
	}
	if n > 0 {
		h.writeCond.Broadcast()
	}
	return n
}

// Len is how many bytes are buffered.
func (h *Half) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.len()
}

// EndRead lets reads fail with err (io.EOF for an orderly end) once the buffer
// is empty.
func (h *Half) EndRead(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readErr == nil {
		h.readErr = err
	}
	h.readCond.Broadcast()
}

// BreakRead lets reads fail with err from now on, and drops the buffer.
func (h *Half) BreakRead(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.broken {
		h.broken, h.readErr = true, err
	}
	h.buf.reset()
	h.readLimit.stop()
	h.readCond.Broadcast()
	h.writeCond.Broadcast()
}

// EndWrite lets writes fail with err from now on; what is buffered stays.
func (h *Half) EndWrite(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writeErr == nil {
		h.writeErr = err
	}
	h.writeLimit.stop()
	h.writeCond.Broadcast()
}

// Drop empties the buffer: what is in it will never be read.
func (h *Half) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.reset()
	h.writeCond.Broadcast()
}

// SetReadDeadline is net.Conn's; it fails once BreakRead was called.
func (h *Half) SetReadDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken {
		return h.readErr
	}
	h.readLimit.set(t, &h.readCond)
	return nil
}

// SetWriteDeadline is net.Conn's; without a writer it does nothing.
func (h *Half) SetWriteDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writeErr == nil {
		h.writeLimit.set(t, &h.writeCond)
	}
}

// deadline is a point in time that wakes whoever waits. Its Half's lock guards
// it.
type deadline struct {
	timer  *time.Timer
	epoch  int // of the timer that counts
	passed bool
}

func (d *deadline) stop() {
	d.epoch++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) set(t time.Time, cond *sync.Cond) {
	d.stop()
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		cond.Broadcast()
		return
	}
	epoch := d.epoch
	d.timer = time.AfterFunc(wait, func() {
		cond.L.Lock()
		defer cond.L.Unlock()
		if d.epoch == epoch {
			d.passed = true
			cond.Broadcast()
		}
	})
}
