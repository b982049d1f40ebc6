package network

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"golang.org/x/sys/unix"

	"sampan/proto"
	"sampan/vm"
)

// Addresses that containers know; see the package's doc.
const (
	Gateway      = "192.168.127.1"
	HostLoopback = "192.168.127.254"
)

const (
	subnet     = "192.168.127.0/24"
	guestCIDR  = "192.168.127.2/24"
	gatewayMAC = "5a:94:ef:e4:0c:dd" // locally administered
	guestMAC   = "5a:94:ef:e4:0c:ee"
	mtu        = 1500
)

// Network is the virtual network of one daemon. It lives through any number of
// machines, one at a time.
type Network struct {
	net *virtualnetwork.VirtualNetwork
	log *slog.Logger
}

// New makes the network. Its stack has no end of its own: there is one for the
// life of the process.
func New(log *slog.Logger) (*Network, error) {
	n, err := virtualnetwork.New(&types.Configuration{
		MTU: mtu, Subnet: subnet, GatewayIP: Gateway, GatewayMacAddress: gatewayMAC,
		GatewayVirtualIPs: []string{HostLoopback},
		NAT:               map[string]string{HostLoopback: "127.0.0.1"},
		DNS: []types.Zone{{Name: "docker.internal.", Records: []types.Record{
			{Name: "host", IP: net.ParseIP(HostLoopback)},
			{Name: "gateway", IP: net.ParseIP(Gateway)},
		}}},
		Protocol: types.VfkitProtocol,
	})
	if err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	return &Network{net: n, log: log}, nil
}

// Attach makes a network card for one machine. detach ends it and waits until
// nothing of it is left.
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
	var wg sync.WaitGroup
	wg.Go(func() {
		// Ends with an error when the socket is closed, which is how it ends.
		n.net.AcceptVfkit(ctx, ours)
	})
	detach = sync.OnceFunc(func() {
		cancel()
		ours.Close()
		wg.Wait()
	})
	uplink = &proto.Uplink{Mac: guestMAC, Address: guestCIDR, Gateway: Gateway, Dns: []string{Gateway}, Mtu: mtu}
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
