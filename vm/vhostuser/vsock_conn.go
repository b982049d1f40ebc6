package vhostuser

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"sampan/vm/vhostuser/stream"
)

// A connection's life:
//
//	Dial ─ request ─▶ connecting ─ response ─▶ open ◀─ response ─ accepted
//	                      │                     │ │
//	                      │ reset: refused      │ │ Close: what is buffered, then
//	                      ▼                     │ ▼ shutdown(both), then the guest's
//	                     dead ◀─ reset, both ───┴─┘ reset or the end of patience
//	                             directions shut
//
// A dead connection is in no table; what it has received can still be read.
type connState int

const (
	connecting connState = iota
	open
	dead
)

const (
	// lingerReset is how long a closed connection waits for the guest's reset.
	lingerReset = 8 * time.Second
	// lingerData is how long it waits for the guest to take any more of what
	// is buffered.
	lingerData = 60 * time.Second
	// maxUpdate bounds what is consumed before the guest is told. Guests cap
	// their credit by their own buffer, 256 KiB unless told otherwise, and
	// stall for good when an update never comes.
	maxUpdate = 256 << 10
)

// vsockConn is one connection, the net.Conn of Dial and Accept.
type vsockConn struct {
	stream.Conn
	v         *Vsock
	key       connKey
	connected chan struct{} // closed when connecting ends
	dialErr   error         // set before
	alloc     uint32        // capacity of In

	mu           sync.Mutex
	state        connState
	queued       bool // in v.ready
	wantRequest  bool
	wantResponse bool
	wantCredit   bool
	closed       bool   // by Close
	shut, sent   uint32 // shutdown flags: ours, those that the guest has been told
	peerShut     uint32
	received     uint32 // bytes from the guest
	consumed     uint32 // of them, read
	reported     uint32 // of them, that the guest has been told about
	transmitted  uint32 // bytes to the guest
	peerAlloc    uint32
	peerFwd      uint32
	linger       *time.Timer
}

// newConn is called with v.mu held.
func (v *Vsock) newConn(key connKey) *vsockConn {
	size := largeBuffer
	if len(v.conns) >= largeConns {
		size = smallBuffer
	}
	c := &vsockConn{v: v, key: key, alloc: uint32(size), connected: make(chan struct{})}
	c.Local, c.Remote = v.hostAddr(key.host), v.guestAddr(key.guest)
	c.In = stream.New(size, func(e stream.Event) { c.update(func() { c.consume(e.Read) }) })
	c.Out = stream.New(size, func(stream.Event) { c.update(func() {}) })
	v.conns[key] = c
	return c
}

// update changes the connection under its lock, and sends what is there to be
// sent now. No lock may be held.
func (c *vsockConn) update(change func()) {
	c.change(change)
	c.v.flush()
}

// change is update without sending: the caller flushes.
func (c *vsockConn) change(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	if !c.queued && c.next() != 0 {
		c.queue()
	}
}

// queue puts the connection into the list of ready ones. The lock is held.
func (c *vsockConn) queue() {
	c.queued = true
	c.v.mu.Lock()
	defer c.v.mu.Unlock()
	c.v.ready = append(c.v.ready, c)
}

// next tells which packet is due, 0 for none. The order matters: nothing goes
// before request and response, shutdown comes after the data.
func (c *vsockConn) next() uint16 {
	switch {
	case c.state == dead:
		return 0
	case c.wantRequest:
		return opRequest
	case c.wantResponse:
		return opResponse
	case c.state == connecting:
		return 0
	}
	left := c.Out.Len()
	switch {
	case left > 0 && c.credit() > 0:
		return opData
	case left == 0 && c.shut != c.sent:
		return opShutdown
	case c.wantCredit:
		return opCreditUpdate
	}
	return 0
}

// credit is how many bytes the guest takes now.
func (c *vsockConn) credit() int {
	underway := c.transmitted - c.peerFwd
	if underway > c.peerAlloc {
		return 0
	}
	return int(c.peerAlloc - underway)
}

// fill writes the connection's next packet; 0 means that there is none.
func (c *vsockConn) fill(bufs [][]byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queued = false
	op := c.next()
	if op == 0 {
		return 0
	}
	h := c.v.header(c.key, op)
	switch op {
	case opRequest:
		c.wantRequest = false
	case opResponse:
		c.wantResponse = false
	case opData:
		room := window(bufs, vsockHeaderSize, c.credit())
		h.len = uint32(c.Out.TryRead(room, c.credit()))
		c.transmitted += h.len
	case opShutdown:
		h.flags, c.sent = c.shut, c.shut
		if c.closed {
			c.wait(lingerReset)
		}
	}
	c.wantCredit = false // each packet tells it
	c.reported = c.forwarded()
	h.alloc, h.fwd = c.alloc, c.reported
	h.put(bufs)
	if c.next() != 0 {
		c.queue()
	}
	return vsockHeaderSize + int(h.len)
}

// forwarded is how much of what was received no longer takes room.
func (c *vsockConn) forwarded() uint32 {
	if c.closed {
		return c.received
	}
	return c.consumed
}

// consume counts what the reader has taken, and tells the guest in time.
func (c *vsockConn) consume(n int) {
	c.consumed += uint32(n)
	c.creditDue()
}

func (c *vsockConn) creditDue() {
	if c.forwarded()-c.reported >= min(c.alloc, c.peerAlloc, maxUpdate)/2 {
		c.wantCredit = true
	}
}

// packet takes what the guest has sent. The lock is held.
func (c *vsockConn) packet(h vsockHeader, data [][]byte) {
	c.peerAlloc, c.peerFwd = h.alloc, h.fwd
	switch h.op {
	case opResponse:
		if c.state != connecting || c.wantRequest {
			c.reset(syscall.ECONNRESET)
			return
		}
		c.state = open
		close(c.connected)
	case opReset:
		if c.state == connecting {
			c.dialErr = syscall.ECONNREFUSED
		}
		c.gone(syscall.ECONNRESET)
	case opShutdown:
		c.peerShutdown(h.flags & shutBoth)
	case opData:
		c.data(int(h.len), data)
	case opCreditUpdate:
	case opCreditRequest:
		c.wantCredit = true
	default: // a second request, and what nobody knows
		c.reset(syscall.ECONNRESET)
	}
}

func (c *vsockConn) data(n int, data [][]byte) {
	if c.state != open || c.peerShut&shutSend != 0 || !c.In.TryWrite(data) {
		c.reset(syscall.ECONNRESET)
		return
	}
	c.received += uint32(n)
	if c.closed {
		c.creditDue()
	}
}

func (c *vsockConn) peerShutdown(flags uint32) {
	if c.state != open {
		c.reset(syscall.ECONNRESET)
		return
	}
	c.peerShut |= flags
	// In this order: who reads the end finds out by a write whether the guest
	// has closed the connection altogether.
	if c.peerShut&shutReceive != 0 {
		c.Out.EndWrite(syscall.EPIPE)
		c.Out.Drop()
	}
	if c.peerShut&shutSend != 0 {
		c.In.EndRead(io.EOF)
	}
	if c.peerShut == shutBoth {
		c.reset(syscall.ECONNRESET) // the guest waits for it
	}
}

// reset tells the guest that the connection is over, and ends it.
func (c *vsockConn) reset(err error) {
	if c.state != dead {
		c.v.queueReset(reset{c.key, typeStream})
	}
	c.gone(err)
}

// gone ends the connection on our side; err is what its users get.
func (c *vsockConn) gone(err error) {
	if c.state == dead {
		return
	}
	if c.state == connecting {
		if c.dialErr == nil {
			c.dialErr = err
		}
		close(c.connected)
	}
	c.state = dead
	if c.linger != nil {
		c.linger.Stop()
	}
	c.In.EndRead(err)
	c.Out.EndWrite(err)
	c.Out.Drop()
	c.v.mu.Lock()
	delete(c.v.conns, c.key)
	c.v.mu.Unlock()
}

// Close is net.Conn's. It returns at once; what was written still reaches a
// guest that reads it.
func (c *vsockConn) Close() error {
	c.In.BreakRead(net.ErrClosed)
	c.Out.EndWrite(net.ErrClosed)
	c.update(func() {
		if c.closed {
			return
		}
		c.closed, c.shut = true, shutBoth
		if c.state != dead {
			c.wait(lingerData)
		}
	})
	return nil
}

// CloseWrite tells the guest that nothing more comes.
func (c *vsockConn) CloseWrite() error {
	c.Out.EndWrite(syscall.EPIPE)
	c.update(func() { c.shut |= shutSend })
	return nil
}

// wait resets the closed connection unless the guest makes progress.
func (c *vsockConn) wait(d time.Duration) {
	if c.linger != nil {
		c.linger.Stop()
	}
	sent, transmitted := c.sent, c.transmitted
	c.linger = time.AfterFunc(d, func() {
		c.update(func() {
			switch {
			case c.state == dead:
			case c.sent != sent: // another wait is on
			case c.transmitted != transmitted:
				c.wait(d)
			default:
				c.reset(syscall.ECONNRESET)
			}
		})
	})
}
