package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxConnecting bounds connections that are being made: one to nowhere
	// takes minutes and must not hold up the others.
	maxConnecting = 1024
	// connectTimeout is about what Linux gives a connection to be made.
	connectTimeout = 130 * time.Second
)

// outbound carries what the guest opens to the outside.
type outbound struct {
	net   *Network
	stack *stack.Stack

	mu      sync.Mutex
	machine *tenure // the one that is attached; nil before the first
}

// tenure is a machine's time on the network: what it opens to the outside ends
// with it.
type tenure struct {
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	wg     sync.WaitGroup
}

// begin is called when a machine is attached.
func (o *outbound) begin() *tenure {
	m := &tenure{}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	o.mu.Lock()
	o.machine = m
	o.mu.Unlock()
	return m
}

// current is nil when no machine has been attached.
func (o *outbound) current() *tenure {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.machine
}

// enter counts the caller in until it calls wg.Done, if the machine is there.
func (m *tenure) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return false
	}
	m.wg.Add(1)
	return true
}

// end ends all connections and waits for that.
func (m *tenure) end() {
	m.mu.Lock()
	m.cancel()
	m.mu.Unlock()
	m.wg.Wait()
}

// tcp answers a connection request: first the connection to the outside is
// made, then the guest's request is answered with what came of it.
func (o *outbound) tcp(r *tcp.ForwarderRequest) {
	to := netip.AddrFrom4(r.ID().LocalAddress.As4())
	if linkLocal.Contains(to) {
		r.Complete(true)
		return
	}
	m := o.current()
	if m == nil {
		r.Complete(true)
		return
	}
	conn, err := m.dial(o.net.actual(to), r.ID().LocalPort)
	if err != nil {
		r.Complete(true)
		return
	}
	// The stack's own time, which can't be cut short: a machine that is gone
	// leaves it waiting a while, but without the connection.
	stop := context.AfterFunc(m.ctx, func() { conn.Close() })
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	stop()
	if terr != nil { // the guest has given up meanwhile
		conn.Close()
		return
	}
	if !m.enter() {
		ep.Abort()
		conn.Close()
		return
	}
	defer m.wg.Done()
	splice(m.ctx, gonet.NewTCPConn(&wq, ep), ep, conn)
}

// dial makes a connection to the outside while the machine is there. What listens
// on the host's loopback may do so for IPv6 alone: many a development server's
// "localhost" is ::1.
func (m *tenure) dial(to netip.Addr, port uint16) (*net.TCPConn, error) {
	if !m.enter() {
		return nil, context.Cause(m.ctx)
	}
	defer m.wg.Done()
	ctx, cancel := context.WithTimeout(m.ctx, connectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", netip.AddrPortFrom(to, port).String())
	if to == loopback4 && errors.Is(err, syscall.ECONNREFUSED) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp6", netip.AddrPortFrom(netip.IPv6Loopback(), port).String())
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// splice copies both ways until both directions have ended, passing on each
// half-close; an error in one direction, and the end of ctx, resets both sides.
func splice(ctx context.Context, guest *gonet.TCPConn, ep tcpip.Endpoint, outside *net.TCPConn) {
	fail := func() {
		ep.Abort()
		outside.SetLinger(0)
		outside.Close()
	}
	defer context.AfterFunc(ctx, fail)()
	var wg sync.WaitGroup
	wg.Go(func() {
		if copyFrom(guest, outside) != nil || guest.CloseWrite() != nil {
			fail()
		}
	})
	if copyTo(outside, guest) != nil || outside.CloseWrite() != nil {
		fail()
	}
	wg.Wait()
	guest.Close()
	outside.Close()
}
