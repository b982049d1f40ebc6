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

// receive takes packets from the guest. It never waits for a reader: a guest
// that sends more than it was allowed to loses the connection.
func (v *Vsock) receive(q *Queue) error {
	for {
		chain, err := q.Pop()
		if err != nil {
			return err
		}
		v.take(chain)
		q.Push(chain, 0)
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
		c.update(func() { c.packet(h, data) })
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
	c.update(func() {})
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
	v.signal()
}

func (v *Vsock) signal() {
	select {
	case v.wake <- struct{}{}:
	default: // it is awake already
	}
}

// send gives packets to the guest, as long as there are both packets and
// buffers of the guest.
func (v *Vsock) send(q *Queue) error {
	for {
		if !v.pending() {
			select {
			case <-v.wake:
			case <-q.Done():
				return ErrStopped
			case <-v.ended:
				return ErrStopped
			}
			continue
		}
		chain, err := q.Pop()
		if err != nil {
			v.signal() // for the next run
			return err
		}
		n, err := v.give(chain)
		if n > 0 {
			q.Push(chain, n)
		} else {
			q.Unpop(chain)
		}
		if err != nil {
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
