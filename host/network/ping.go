package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// pingIdle ends a ping's socket when nothing was sent or received for so long.
	pingIdle = 30 * time.Second
	maxPings = 256
)

// pinger sends the guest's pings to where they are meant to go, through ping
// sockets, which need no privilege (icmp(7), ping_group_range); the stack by
// itself would answer for everybody. What is no ping to somebody else it passes
// on to the stack.
type pinger struct {
	*tap.LinkEndpoint
	net *Network

	mu      sync.Mutex
	open    map[pingKey]*pings
	refused error // by the system; nil while pings are possible
}

// pingKey is a sequence of pings as the guest tells them apart.
type pingKey struct {
	src, dst netip.Addr
	ident    uint16
}

// pings is a sequence, with its socket.
type pings struct {
	pingKey
	conn net.Conn
}

func newPinger(n *Network, link *tap.LinkEndpoint) *pinger {
	return &pinger{LinkEndpoint: link, net: n, open: map[pingKey]*pings{}}
}

// DeliverNetworkPacket is called with each frame from the guest to the gateway.
func (p *pinger) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if protocol == header.IPv4ProtocolNumber {
		if k, msg, ok := p.icmp(pkt.ToView().AsSlice()); ok {
			if msg != nil {
				p.send(k, msg)
			}
			return
		}
	}
	p.LinkEndpoint.DeliverNetworkPacket(protocol, pkt)
}

// icmp says whether a packet is ICMP for somebody but the gateway, and takes an
// echo request out of it. What is something else, or in fragments, goes nowhere:
// the stack would answer it.
func (p *pinger) icmp(b []byte) (k pingKey, msg []byte, ok bool) {
	ip := header.IPv4(b)
	if len(b) < header.IPv4MinimumSize || !ip.IsValid(len(b)) || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
		return k, nil, false
	}
	k.src, k.dst = netip.AddrFrom4(ip.SourceAddress().As4()), netip.AddrFrom4(ip.DestinationAddress().As4())
	if k.dst == p.net.Gateway() {
		return k, nil, false
	}
	h := header.ICMPv4(ip.Payload())
	if ip.More() || ip.FragmentOffset() != 0 || len(h) < header.ICMPv4MinimumSize ||
		h.Type() != header.ICMPv4Echo || checksum.Checksum(h, 0) != 0xffff {
		return k, nil, true
	}
	k.ident = h.Ident()
	return k, append([]byte(nil), h...), true
}

// send sends one request on. Whoever can't be reached is told as a router
// would; that is how ping in the container knows.
func (p *pinger) send(k pingKey, msg []byte) {
	s, err := p.socket(k)
	if err == nil {
		_, err = s.conn.Write(msg)
	}
	if err != nil {
		p.unreachable(k, msg, err)
	}
}

// socket finds the socket of a sequence or opens it.
func (p *pinger) socket(k pingKey) (*pings, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.open[k]
	if s == nil {
		if len(p.open) >= maxPings || linkLocal.Contains(k.dst) {
			return nil, syscall.EHOSTUNREACH
		}
		conn, err := dialPing(p.net.actual(k.dst))
		p.noteLocked(err)
		if err != nil {
			return nil, err
		}
		s = &pings{k, conn}
		p.open[k] = s
		go p.receive(s) // ends with the socket, which is closed when idle
	}
	return s, s.conn.SetReadDeadline(time.Now().Add(pingIdle))
}

// noteLocked remembers whether the system allows pings at all.
func (p *pinger) noteLocked(err error) {
	if !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EPERM) {
		err = nil
	}
	if err != nil && p.refused == nil {
		p.net.log.Warn("pings of containers can't be sent on: " + pingAdvice)
	}
	p.refused = err
}

func (p *pinger) warnings() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused == nil {
		return nil
	}
	return []string{"containers can't ping: " + pingAdvice}
}

// dialPing opens a ping socket to one destination: connected, it receives that
// one's answers only, and the errors of the way there.
func dialPing(to netip.Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("ping socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close() // FileConn duplicates it
	unix.CloseOnExec(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return nil, fmt.Errorf("ping %s: %w", to, err)
	}
	return net.FileConn(f)
}

// receive passes the answers of a sequence on until its socket is idle.
func (p *pinger) receive(s *pings) {
	defer func() {
		p.mu.Lock()
		delete(p.open, s.pingKey)
		p.mu.Unlock()
		s.conn.Close()
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := s.conn.Read(buf)
		switch {
		case err == nil:
			p.answer(s.pingKey, buf[:n])
		case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ECONNREFUSED):
			p.unreachable(s.pingKey, nil, err)
		default:
			return
		}
	}
}

// answer gives the guest an echo reply. The system has chosen an identifier of
// its own for the socket.
func (p *pinger) answer(k pingKey, msg []byte) {
	if ip := header.IPv4(msg); len(msg) > header.IPv4MinimumSize && msg[0]>>4 == 4 && ip.IsValid(len(msg)) {
		msg = ip.Payload() // macOS delivers the whole packet
	}
	h := header.ICMPv4(append([]byte(nil), msg...))
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4EchoReply {
		return
	}
	h.SetIdent(k.ident)
	p.deliver(k.dst, k.src, h)
}

// unreachable tells the guest, as a router on the way would, that a request
// (or, when msg is nil, an earlier one) goes nowhere.
func (p *pinger) unreachable(k pingKey, msg []byte, why error) {
	code := header.ICMPv4HostUnreachable
	switch {
	case errors.Is(why, syscall.ENETUNREACH):
		code = header.ICMPv4NetUnreachable
	case errors.Is(why, syscall.EACCES), errors.Is(why, syscall.EPERM):
		code = header.ICMPv4AdminProhibited
	}
	if msg == nil {
		msg = make([]byte, header.ICMPv4MinimumSize)
		header.ICMPv4(msg).SetType(header.ICMPv4Echo)
		header.ICMPv4(msg).SetIdent(k.ident)
	}
	// It quotes the packet's header and the first 8 bytes after it.
	quoted := packet(k.src, k.dst, msg)[:header.IPv4MinimumSize+header.ICMPv4MinimumSize]
	h := header.ICMPv4(append(make([]byte, header.ICMPv4MinimumSize), quoted...))
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(code)
	p.deliver(p.net.Gateway(), k.src, h)
}

// deliver sends an ICMP message to the guest.
func (p *pinger) deliver(from, to netip.Addr, h header.ICMPv4) {
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(h, 0))
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		return // a constant
	}
	frame := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+mtu)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: p.LinkAddress(), DstAddr: tcpip.LinkAddress(mac), Type: header.IPv4ProtocolNumber,
	})
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(append(frame, packet(from, to, h)...))})
	defer pkt.DecRef()
	p.net.ports.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
}

// packet is an IPv4 packet with an ICMP message.
func packet(from, to netip.Addr, msg []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(msg))
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(msg)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: address4(from), DstAddr: address4(to),
	})
	header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	return append(b, msg...)
}
