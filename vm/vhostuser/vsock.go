package vhostuser

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"

	"github.com/mdlayher/vsock"
)

// What a guest can make the device hold.
const (
	maxConns   = 4096
	maxBacklog = 512
	maxResets  = 4096

	largeBuffer = 1 << 20  // of each direction of a connection,
	largeConns  = 128      // while there are at most so many,
	smallBuffer = 64 << 10 // and of those that come later
)

// errEnded is why nothing works any more.
var errEnded = fmt.Errorf("the machine has ended: %w", net.ErrClosed)

// Vsock is a virtio socket device (virtio 1.2, 5.10): the host's end of every
// vsock connection of one guest. Stream sockets only.
//
// Each connection knows what it has to say (flags, its buffer) and is in the
// list of ready ones at most once; whoever has put it there sends, or who is at
// it already. So the guest bounds nothing of ours by not taking packets, a
// response always goes before the data behind it, and the transmit ring never
// waits for anybody.
//
// Locks: sending, then a connection's, then its Halves' or the device's.
type Vsock struct {
	cid uint64

	sending sync.Mutex // the receive ring's one user
	rx      *Queue     // its run, by sending; nil without one
	rxErr   error      // why it can't be used, by sending

	mu        sync.Mutex
	closed    bool
	conns     map[connKey]*vsockConn
	listeners map[uint32]*vsockListener
	lastPort  uint32
	ready     []*vsockConn
	resets    []reset
	started   [2]bool // which rings have started since the guest's driver came up
}

// connKey names a connection: the port on the host and the one in the guest.
type connKey struct{ host, guest uint32 }

// reset is a packet that belongs to no connection.
type reset struct {
	key connKey
	typ uint16
}

// NewVsock makes the device of the guest with the given context ID (3 or
// more). The ID is private to the machine: all guests may have the same.
func NewVsock(cid uint64) *Vsock {
	return &Vsock{
		cid:       cid,
		conns:     map[connKey]*vsockConn{},
		listeners: map[uint32]*vsockListener{},
		lastPort:  firstEphemeral + rand.Uint32N(1<<30),
	}
}

// firstEphemeral is the lowest port that Dial and Listen(0) pick.
const firstEphemeral = 1 << 16

// Features is for the transport: streams only.
func (v *Vsock) Features() uint64 { return 0 }

// Queues is for the transport: receive and transmit. The event queue stays in
// the front end.
func (v *Vsock) Queues() int { return 2 }

// Config is for the transport: the guest's context ID.
func (v *Vsock) Config() []byte { return binary.LittleEndian.AppendUint64(nil, v.cid) }

// Dial connects to a port of the guest. It fails with ECONNREFUSED when nobody
// listens there, and at once after the machine has ended; while the guest's
// driver is not up it waits. Cancelling ctx gives up.
func (v *Vsock) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := v.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: v.guestAddr(port), Err: err}
	}
	return c, nil
}

func (v *Vsock) dial(ctx context.Context, port uint32) (*vsockConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil, errEnded
	}
	if len(v.conns) >= maxConns {
		v.mu.Unlock()
		return nil, fmt.Errorf("%d connections are open: %w", maxConns, syscall.ENOBUFS)
	}
	key := connKey{guest: port}
	for {
		key.host = v.nextPort()
		if _, taken := v.conns[key]; !taken {
			break
		}
	}
	c := v.newConn(key)
	v.mu.Unlock()

	c.update(func() { c.wantRequest = true })
	select {
	case <-c.connected:
	case <-ctx.Done():
		c.update(func() {
			if c.state == connecting {
				c.dialErr = ctx.Err()
				c.reset(ctx.Err())
			}
		})
		<-c.connected
	}
	return c, c.dialErr
}

// nextPort is called with v.mu held.
func (v *Vsock) nextPort() uint32 {
	for {
		v.lastPort++
		if v.lastPort < firstEphemeral || v.lastPort == 1<<32-1 {
			v.lastPort = firstEphemeral
		}
		if _, taken := v.listeners[v.lastPort]; !taken {
			return v.lastPort
		}
	}
}

// Listen accepts connections of the guest to a port of the host; port 0 picks
// one.
func (v *Vsock) Listen(port uint32) (net.Listener, error) {
	l, err := v.listen(port)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: v.hostAddr(port), Err: err}
	}
	return l, nil
}

func (v *Vsock) listen(port uint32) (*vsockListener, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, errEnded
	}
	if port == 0 {
		port = v.nextPort()
	}
	if _, taken := v.listeners[port]; taken {
		return nil, syscall.EADDRINUSE
	}
	l := &vsockListener{v: v, addr: v.hostAddr(port), backlog: make(chan *vsockConn, maxBacklog), done: make(chan struct{})}
	v.listeners[port] = l
	return l, nil
}

// Close ends the device: all connections and listeners fail. The transport
// calls it when the front end is gone. Idempotent.
func (v *Vsock) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	var listeners []*vsockListener
	for _, l := range v.listeners {
		listeners = append(listeners, l)
	}
	v.mu.Unlock()
	for _, l := range listeners {
		l.shut(errEnded)
	}
	v.dropConns(func(*vsockConn) bool { return true })
	return nil
}

// dropConns ends the connections that match, as far as the guest is concerned
// they are gone.
func (v *Vsock) dropConns(match func(*vsockConn) bool) {
	v.mu.Lock()
	var conns []*vsockConn
	for _, c := range v.conns {
		conns = append(conns, c)
	}
	ended := v.closed
	v.mu.Unlock()
	for _, c := range conns {
		c.update(func() {
			if !match(c) {
				return
			}
			if ended && c.state == connecting {
				c.dialErr = errEnded
			}
			c.gone(syscall.ECONNRESET)
		})
	}
}

func (v *Vsock) guestAddr(port uint32) *vsock.Addr {
	return &vsock.Addr{ContextID: uint32(v.cid), Port: port}
}

func (v *Vsock) hostAddr(port uint32) *vsock.Addr {
	return &vsock.Addr{ContextID: vsock.Host, Port: port}
}

// vsockListener is a port of the host that the guest may connect to.
type vsockListener struct {
	v       *Vsock
	addr    *vsock.Addr
	backlog chan *vsockConn // filled under v.mu while the listener is in v.listeners
	done    chan struct{}
	err     error // why Accept fails; set before done is closed
	once    sync.Once
}

// Accept is net.Listener's.
func (l *vsockListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.addr, Err: l.err}
}

// Addr is net.Listener's.
func (l *vsockListener) Addr() net.Addr { return l.addr }

// Close is net.Listener's: what was not accepted is reset.
func (l *vsockListener) Close() error {
	l.shut(net.ErrClosed)
	return nil
}

func (l *vsockListener) shut(err error) {
	l.once.Do(func() {
		l.v.mu.Lock()
		delete(l.v.listeners, l.addr.Port)
		l.v.mu.Unlock()
		l.err = err
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				c.update(func() { c.reset(net.ErrClosed) })
			default:
				return
			}
		}
	})
}
