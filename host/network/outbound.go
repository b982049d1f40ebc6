package network

import (
	"context"
	"net"
	"net/netip"
	"sync"
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
}

// tcp answers a connection request: first the connection to the outside is
// made, then the guest's request is answered with what came of it.
func (o *outbound) tcp(r *tcp.ForwarderRequest) {
	to := netip.AddrFrom4(r.ID().LocalAddress.As4())
	if linkLocal.Contains(to) {
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", netip.AddrPortFrom(o.net.actual(to), r.ID().LocalPort).String())
	cancel()
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil { // the guest has given up meanwhile
		conn.Close()
		return
	}
	splice(gonet.NewTCPConn(&wq, ep), ep, conn.(*net.TCPConn))
}

// splice copies both ways until both directions have ended, passing on each
// half-close; an error in one direction resets both sides.
func splice(guest *gonet.TCPConn, ep tcpip.Endpoint, outside *net.TCPConn) {
	fail := func() {
		ep.Abort()
		outside.SetLinger(0)
		outside.Close()
	}
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
