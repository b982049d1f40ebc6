package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"sampan/proto"
)

// Bounds of a UDP port. A datagram that exceeds one is lost, as datagrams are.
const (
	// flowIdle ends a flow when nothing has come either way for so long.
	flowIdle = 90 * time.Second
	// maxFlows is how many clients a port has at a time; a new one takes the
	// place of the one that has been silent longest.
	maxFlows = 1024
	// maxQueued bounds what a flow keeps for a container that is slow, in
	// datagrams, and maxQueuedBytes what a port does.
	maxQueued      = 256
	maxQueuedBytes = 8 << 20
	// udpBuffer is what the system keeps for us, in bytes.
	udpBuffer = 1 << 20
	// bindTries is how often a free port is looked for that is free in both
	// families.
	bindTries = 16
)

// udpSocket receives a port's datagrams: one connection per family.
type udpSocket struct {
	conns []*udpConn
	idle  time.Duration
}

// udpConn is a socket of one family. Bound to every address it tells which one
// a datagram was for, for the answer to come from there.
type udpConn struct {
	*net.UDPConn
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

func listenUDP(spec Spec) (socket, error) {
	if spec.HostIP.IsValid() {
		c, err := openUDP(address(spec))
		if err != nil {
			return nil, err
		}
		return &udpSocket{[]*udpConn{c}, flowIdle}, nil
	}
	for try := 0; ; try++ {
		s, err := listenBoth(spec.HostPort)
		if spec.HostPort != 0 || try == bindTries || !errors.Is(err, syscall.EADDRINUSE) {
			return s, err
		}
	}
}

// listenBoth opens a port in both families, or in the one that the host has.
func listenBoth(port uint16) (socket, error) {
	four, err := openUDP("udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	six, err := openUDP("udp6", fmt.Sprintf("[::]:%d", four.LocalAddr().(*net.UDPAddr).Port))
	switch {
	case err == nil:
		return &udpSocket{[]*udpConn{four, six}, flowIdle}, nil
	case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
		return &udpSocket{[]*udpConn{four}, flowIdle}, nil
	}
	four.Close()
	return nil, err
}

func openUDP(network, addr string) (*udpConn, error) {
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		return nil, err
	}
	c := &udpConn{UDPConn: pc.(*net.UDPConn)}
	c.SetReadBuffer(udpBuffer) // as much of it as the system grants
	if !c.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		return c, nil
	}
	if network == "udp4" {
		c.v4 = ipv4.NewPacketConn(pc)
		err = c.v4.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	} else {
		c.v6 = ipv6.NewPacketConn(pc)
		err = c.v6.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// client is where a datagram comes from, and what it was sent to: together
// they name a flow.
type client struct {
	addr netip.AddrPort
	dst  netip.Addr // zero: the socket's own
	link int        // interface, where dst alone doesn't say; 0: any
}

// receive reads one datagram.
func (c *udpConn) receive(buf []byte) (n int, from client, err error) {
	var src net.Addr
	switch {
	case c.v4 != nil:
		var cm *ipv4.ControlMessage
		if n, cm, src, err = c.v4.ReadFrom(buf); err == nil && cm != nil {
			from.dst, _ = netip.AddrFromSlice(cm.Dst)
		}
	case c.v6 != nil:
		var cm *ipv6.ControlMessage
		if n, cm, src, err = c.v6.ReadFrom(buf); err == nil && cm != nil {
			from.dst, _ = netip.AddrFromSlice(cm.Dst)
			if from.dst.IsLinkLocalUnicast() {
				from.link = cm.IfIndex
			}
		}
	default:
		n, from.addr, err = c.ReadFromUDPAddrPort(buf)
		return n, from, err
	}
	if err == nil {
		from.addr = src.(*net.UDPAddr).AddrPort()
	}
	if from.dst = from.dst.Unmap(); from.dst.IsMulticast() || from.dst == broadcast {
		from.dst = netip.Addr{} // nothing can be sent from there
	}
	return n, from, err
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// answer sends a datagram back to where one came from.
func (c *udpConn) answer(p []byte, to client) error {
	var err error
	switch {
	case !to.dst.IsValid() || c.v4 == nil && c.v6 == nil:
		_, err = c.WriteToUDPAddrPort(p, to.addr)
	case c.v4 != nil:
		_, err = c.v4.WriteTo(p, &ipv4.ControlMessage{Src: to.dst.AsSlice()}, net.UDPAddrFromAddrPort(to.addr))
	default:
		_, err = c.v6.WriteTo(p, &ipv6.ControlMessage{Src: to.dst.AsSlice(), IfIndex: to.link}, net.UDPAddrFromAddrPort(to.addr))
	}
	return err
}

// Addrs implements socket.
func (s *udpSocket) Addrs() []netip.AddrPort {
	var list []netip.AddrPort
	for _, c := range s.conns {
		list = append(list, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return list
}

// Close implements socket.
func (s *udpSocket) Close() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Serve implements socket: when one family's socket fails, both end.
func (s *udpSocket) Serve(p *Port) error {
	f := &flows{port: p, idle: s.idle, open: map[flowKey]*flow{}}
	f.ctx, f.cancel = context.WithCancel(p.ctx)
	defer f.wg.Wait()
	defer f.cancel()
	errs := make(chan error, len(s.conns))
	for i, c := range s.conns {
		f.wg.Go(func() { errs <- f.serve(c, receiving4+part(i)) })
	}
	err := <-errs
	s.Close()
	return err
}

// flows are the clients of a port.
type flows struct {
	port   *Port
	idle   time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	queued atomic.Int64 // bytes, of all flows

	mu   sync.Mutex
	open map[flowKey]*flow
}

type flowKey struct {
	conn *udpConn
	client
}

// flow is one client's datagrams, both ways, over one stream to the agent: a
// socket of its own in the guest.
type flow struct {
	flowKey
	cancel context.CancelFunc
	queue  chan []byte  // framed
	last   atomic.Int64 // when something came, nanoseconds since the epoch
}

// serve reads a socket, which is a part of the port, until it is closed.
func (f *flows) serve(c *udpConn, what part) error {
	buf := make([]byte, proto.MaxDatagram)
	for {
		n, from, err := c.receive(buf)
		switch {
		case err == nil:
			f.port.works(what)
			f.take(flowKey{c, from}, buf[:n])
		case errors.Is(err, syscall.ECONNREFUSED): // the answer to one of ours
		case exhausted(err):
			f.port.failed(what, err)
			f.port.pause(restartMin)
		default:
			return err
		}
	}
}

// take queues a datagram for the container, or drops it.
func (f *flows) take(k flowKey, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.open[k]
	if fl == nil {
		fl = f.begin(k)
	}
	size := proto.DatagramHeader + len(p)
	if len(fl.queue) == cap(fl.queue) || f.queued.Load()+int64(size) > maxQueuedBytes {
		return
	}
	f.queued.Add(int64(size))
	fl.queue <- proto.AppendDatagram(make([]byte, 0, size), p)
	fl.last.Store(time.Now().UnixNano())
}

// begin makes a flow, in the place of another where there are too many. The
// lock is held.
func (f *flows) begin(k flowKey) *flow {
	if len(f.open) >= maxFlows {
		var oldest *flow
		for _, fl := range f.open {
			if oldest == nil || fl.last.Load() < oldest.last.Load() {
				oldest = fl
			}
		}
		delete(f.open, oldest.flowKey)
		oldest.cancel()
	}
	ctx, cancel := context.WithCancel(f.ctx)
	fl := &flow{flowKey: k, cancel: cancel, queue: make(chan []byte, maxQueued)}
	fl.last.Store(time.Now().UnixNano())
	f.open[k] = fl
	f.wg.Go(func() {
		defer f.end(fl)
		f.run(ctx, fl)
	})
	return fl
}

// retire takes a silent flow out of the table, unless something has come: what
// comes from now on begins another.
func (f *flows) retire(fl *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(fl.queue) > 0 {
		return false
	}
	if f.open[fl.flowKey] == fl {
		delete(f.open, fl.flowKey)
	}
	return true
}

// end forgets a flow and what it has queued.
func (f *flows) end(fl *flow) {
	fl.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[fl.flowKey] == fl {
		delete(f.open, fl.flowKey)
	}
	for len(fl.queue) > 0 {
		f.queued.Add(-int64(len(<-fl.queue)))
	}
}

// run carries a flow until nothing has come for the idle time.
func (f *flows) run(ctx context.Context, fl *flow) {
	stream, err := f.port.dial(ctx)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	defer stream.Close()
	f.wg.Go(func() {
		defer fl.cancel()
		f.answers(fl, stream)
	})
	idle := time.NewTimer(f.idle)
	defer idle.Stop()
	for {
		select {
		case p := <-fl.queue:
			_, err := stream.Write(p)
			f.queued.Add(-int64(len(p)))
			if err != nil {
				return
			}
		case <-idle.C:
			left := f.idle - time.Since(time.Unix(0, fl.last.Load()))
			if left <= 0 && f.retire(fl) {
				return
			}
			idle.Reset(max(left, 0))
		case <-ctx.Done():
			return
		}
	}
}

// answers sends the container's datagrams to the client until the stream ends.
func (f *flows) answers(fl *flow, stream net.Conn) {
	r, buf := bufio.NewReader(stream), make([]byte, 0, 2048)
	for {
		var err error
		if buf, err = proto.ReadDatagram(r, buf); err != nil {
			return
		}
		fl.last.Store(time.Now().UnixNano())
		fl.conn.answer(buf, fl.client) // one that can't be sent is lost
	}
}
