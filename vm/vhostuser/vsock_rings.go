package vhostuser

import (
	"fmt"

	"github.com/mdlayher/vsock"
)

const (
	receiveQueue  = 0 // to the guest
	transmitQueue = 1 // from the guest
)

// Serve is for the transport.
func (v *Vsock) Serve(q *Queue) error {
	if q.Fresh() {
		v.driverUp(q.Index())
	}
	if q.Index() == receiveQueue {
		return v.send(q)
	}
	return v.receive(q)
}

// driverUp forgets the connections of an earlier life of the guest (a reset, a
// reloaded driver), when the first of the two rings starts anew. A Dial whose
// request has not gone out yet is for the new one.
func (v *Vsock) driverUp(queue int) {
	v.mu.Lock()
	again := v.started[queue]
	if again {
		v.started = [2]bool{}
		v.resets = nil
	}
	v.started[queue] = true
	v.mu.Unlock()
	if again {
		v.dropConns(func(c *vsockConn) bool { return !c.wantRequest })
	}
}

// flushEvery is how many packets of the guest are taken before it gets the
// answers to them.
const flushEvery = 32

// promptly is the size from which on the guest hears at once that a packet was
// taken: it can use the memory, still in the processor's cache, for the next one.
// Of smaller ones it learns of many together.
const promptly = 4 << 10

// receive takes packets from the guest. It never waits for a reader: a guest
// that sends more than it was allowed to loses the connection.
func (v *Vsock) receive(q *Queue) error {
	for n := 1; ; n++ {
		chain, err := q.tryPop()
		switch {
		case err != nil:
			return err
		case chain == nil:
			v.flush()
			if err := q.wait(); err != nil {
				return err
			}
			continue
		}
		size := chain.ReadableLen()
		v.take(chain)
		q.pushQuietly(chain, 0)
		if size >= promptly {
			q.notify()
		} else {
			q.notifyLater()
		}
		if n%flushEvery == 0 {
			v.flush()
		}
	}
}

// take handles a packet of the guest. Malformed and foreign ones are dropped,
// as vhost-vsock does.
func (v *Vsock) take(chain *Chain) {
	if h, data, ok := parseVsock(chain.Readable); ok && h.srcCID == v.cid && h.dstCID == vsock.Host {
		v.packet(h, data)
	}
}

func (v *Vsock) packet(h vsockHeader, data [][]byte) {
	key := connKey{host: h.dstPort, guest: h.srcPort}
	if h.typ != typeStream {
		if h.op != opReset {
			v.queueReset(reset{key, h.typ})
		}
		return
	}
	v.mu.Lock()
	c := v.conns[key]
	v.mu.Unlock()
	switch {
	case c != nil:
		c.change(func() { c.packet(h, data) })
	case h.op == opRequest:
		if !v.accept(key, h) {
			v.queueReset(reset{key, h.typ})
		}
	case h.op != opReset:
		v.queueReset(reset{key, h.typ})
	}
}

// accept puts a new connection into its listener's backlog.
func (v *Vsock) accept(key connKey, h vsockHeader) bool {
	v.mu.Lock()
	l := v.listeners[key.host]
	if v.closed || l == nil || len(v.conns) >= maxConns || len(l.backlog) == cap(l.backlog) {
		v.mu.Unlock()
		return false
	}
	c := v.newConn(key)
	c.state = open
	c.wantResponse = true // before anybody can write
	c.peerAlloc, c.peerFwd = h.alloc, h.fwd
	l.backlog <- c // has room: it is only filled here
	v.mu.Unlock()
	c.change(func() {})
	return true
}

// queueReset is for packets that belong to no connection. A guest that does
// not take them loses those beyond a limit.
func (v *Vsock) queueReset(r reset) {
	v.mu.Lock()
	if len(v.resets) < maxResets {
		v.resets = append(v.resets, r)
	}
	v.mu.Unlock()
}

const (
	// flushMost is how many packets flush gives before it leaves the others to
	// the ring's goroutine: its caller wants to go on.
	flushMost = 256
	// notifyEvery is how many packets the guest gets before it hears of them.
	notifyEvery = 16
)

// flush sends, in the goroutine that has made something ready: handing it over
// to another would cost more than sending. It never waits; no lock of ours may
// be held.
//
// Nothing is forgotten: while somebody else sends, that one looks again after
// it has stopped; when the ring is empty, the guest's next kick wakes the ring's
// goroutine, and when it has none, its next one begins with what there is.
func (v *Vsock) flush() {
	for v.pending() && v.sending.TryLock() {
		again := v.deliver()
		v.sending.Unlock()
		if !again {
			return
		}
	}
}

// deliver gives packets to the guest, as long as there are both packets and
// buffers of the guest. True means that it ran out of packets, and that the
// caller has to look again after it has unlocked v.sending.
func (v *Vsock) deliver() (again bool) {
	q := v.rx
	if q == nil || v.rxErr != nil {
		return false
	}
	defer q.notify()
	for n := 1; v.pending(); n++ {
		if n > flushMost {
			q.wake()
			return false
		}
		chain, err := q.tryPop()
		if chain == nil {
			if err != nil {
				v.sendFailed(err)
			}
			return false
		}
		if k, err := v.give(chain); k > 0 {
			q.pushQuietly(chain, k)
		} else {
			q.Unpop(chain)
			if err != nil {
				v.sendFailed(err)
				return false
			}
		}
		if n%notifyEvery == 0 {
			q.notify()
		}
	}
	return true
}

// sendFailed lets the receive ring's goroutine end, with the error.
func (v *Vsock) sendFailed(err error) {
	v.rxErr = err
	v.rx.wake()
}

// send serves the receive ring: it sends what flush could not.
func (v *Vsock) send(q *Queue) error {
	v.sending.Lock()
	v.rx, v.rxErr = q, nil
	v.sending.Unlock()
	defer func() {
		v.sending.Lock()
		v.rx = nil
		v.sending.Unlock()
	}()
	for {
		v.sending.Lock()
		again := v.deliver()
		err := v.rxErr
		v.sending.Unlock()
		if err != nil {
			return err
		}
		if again && v.pending() {
			continue
		}
		if err := q.wait(); err != nil {
			return err
		}
	}
}

// give writes the next packet into a buffer of the guest and tells its length;
// 0 when there is none after all.
func (v *Vsock) give(chain *Chain) (int, error) {
	if size := chain.WritableLen(); size <= vsockHeaderSize {
		return 0, fmt.Errorf("receive buffer of %d bytes", size)
	}
	return v.fill(chain.Writable), nil
}

func (v *Vsock) pending() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.ready) > 0 || len(v.resets) > 0
}

// fill is give for a buffer that is long enough.
func (v *Vsock) fill(bufs [][]byte) int {
	for {
		v.mu.Lock()
		if len(v.resets) > 0 {
			r := v.resets[0]
			v.resets = v.resets[1:]
			v.mu.Unlock()
			h := v.header(r.key, opReset)
			h.typ = r.typ
			h.put(bufs)
			return vsockHeaderSize
		}
		if len(v.ready) == 0 {
			v.mu.Unlock()
			return 0
		}
		c := v.ready[0]
		v.ready[0] = nil
		v.ready = v.ready[1:]
		v.mu.Unlock()
		if n := c.fill(bufs); n > 0 {
			return n
		}
	}
}

// header is that of a packet to the guest.
func (v *Vsock) header(key connKey, op uint16) vsockHeader {
	return vsockHeader{
		srcCID: vsock.Host, srcPort: key.host,
		dstCID: v.cid, dstPort: key.guest,
		typ: typeStream, op: op,
	}
}
