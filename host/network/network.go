package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containers/gvisor-tap-vsock/pkg/services/forwarder"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"sampan/proto"
	"sampan/vm"
)

const (
	gatewayMAC = "5a:94:ef:e4:0c:dd" // locally administered
	guestMAC   = "5a:94:ef:e4:0c:ee"
	mtu        = 1500
	nic        = 1
)

// Config of a Network. Every field is optional but Log.
type Config struct {
	// Subnet between host and guest, a /24. Without one it is the first of a
	// few that the host has no route to.
	Subnet netip.Prefix
	// ResolvConf and Hosts are the host's own: /etc/resolv.conf, /etc/hosts.
	ResolvConf, Hosts string
	Log               *slog.Logger
}

// Network is the virtual network of one daemon. It lives through any number of
// machines, one at a time.
type Network struct {
	subnet netip.Prefix
	ports  *tap.Switch
	ping   *pinger
	out    *outbound
	log    *slog.Logger
}

// New makes the network. Its stack has no end of its own: there is one for the
// life of the process.
func New(cfg Config) (*Network, error) {
	subnet, err := chooseSubnet(cfg.Subnet)
	if err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	n := &Network{subnet: subnet, ports: tap.NewSwitch(false), log: cfg.Log}
	if err := n.build(cfg); err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	return n, nil
}

// Gateway is the guest's next hop and name server.
func (n *Network) Gateway() netip.Addr { return n.host(1) }

// HostLoopback is the host's loopback, as containers reach it:
// host.docker.internal.
func (n *Network) HostLoopback() netip.Addr { return n.host(254) }

// Warnings tell what of the network doesn't work.
func (n *Network) Warnings() []string { return n.ping.warnings() }

// Traffic is how many bytes, of Ethernet frames, the machines have received and
// sent by their network cards since New.
func (n *Network) Traffic() (received, sent uint64) {
	return atomic.LoadUint64(&n.ports.Sent), atomic.LoadUint64(&n.ports.Received)
}

func (n *Network) host(last byte) netip.Addr {
	b := n.subnet.Addr().As4()
	b[3] = last
	return netip.AddrFrom4(b)
}

// build makes the TCP/IP stack and what answers in it.
func (n *Network) build(cfg Config) error {
	link, err := tap.NewLinkEndpoint(false, mtu, gatewayMAC, n.Gateway().String(), []string{n.HostLoopback().String()})
	if err != nil {
		return err
	}
	n.ping = newPinger(n, link)
	link.Connect(n.ports)
	n.ports.Connect(n.ping) // which passes on what is no ping
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := s.CreateNIC(nic, link); err != nil {
		return errors.New(err.String())
	}
	if err := s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: address4(n.Gateway()).WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// The stack answers for every address there is.
	s.SetSpoofing(nic, true)
	s.SetPromiscuousMode(nic, true)
	subnet, err := tcpip.NewSubnet(address4(n.subnet.Addr()), tcpip.MaskFromBytes(net.CIDRMask(n.subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	s.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})

	n.out = &outbound{net: n, stack: s}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxConnecting, n.out.tcp).HandlePacket)
	var lock sync.Mutex
	nat := map[tcpip.Address]tcpip.Address{address4(n.HostLoopback()): address4(loopback4)}
	s.SetTransportProtocolHandler(udp.ProtocolNumber, forwarder.UDP(s, nat, &lock, false).HandlePacket)
	return newNames(cfg, n).serve(s)
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func address4(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

// actual is where on the host's side a guest's destination is.
func (n *Network) actual(a netip.Addr) netip.Addr {
	if a == n.HostLoopback() {
		return loopback4
	}
	return a
}

// Attach makes a network card for one machine. detach ends it, and the
// connections that the machine has opened, and waits for that; flows of
// datagrams end by themselves when they have been silent.
func (n *Network) Attach() (nic *vm.NIC, uplink *proto.Uplink, detach func(), err error) {
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		return nil, nil, nil, err
	}
	theirs, ours, err := datagramPair()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("network card: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	opened := n.out.begin()
	var wg sync.WaitGroup
	wg.Go(func() {
		// Ends with an error when the socket is closed, which is how it ends.
		n.ports.Accept(ctx, ours, types.VfkitProtocol)
	})
	detach = sync.OnceFunc(func() {
		cancel()
		ours.Close()
		wg.Wait()
		opened.end()
	})
	uplink = &proto.Uplink{
		Mac: guestMAC, Address: netip.PrefixFrom(n.host(2), n.subnet.Bits()).String(),
		Gateway: n.Gateway().String(), Dns: []string{n.Gateway().String()}, Mtu: mtu,
	}
	return &vm.NIC{MAC: mac, File: theirs}, uplink, detach, nil
}

// datagramPair makes a connected pair of UNIX datagram sockets, one as a file
// to hand to a hypervisor.
func datagramPair() (*os.File, net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		// Room for a burst of full TCP windows; the kernel caps it silently.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	theirs := os.NewFile(uintptr(fds[0]), "nic")
	file := os.NewFile(uintptr(fds[1]), "network")
	defer file.Close() // FileConn duplicates it
	ours, err := net.FileConn(file)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return theirs, ours, nil
}

// linkLocal is not forwarded: what answers there knows secrets of the host
// (a cloud's metadata service).
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")
