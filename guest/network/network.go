// Package network connects containers inside the guest: a bridge per network,
// a pair of virtual interfaces per container and network, and one nftables
// table that lets containers out by the guest's own network card.
//
//	container eth0 ── veth ── bridge (gateway address) ── nftables ── uplink
//
// Everything is declarative and idempotent: a bridge that exists is adjusted,
// the table is replaced as a whole. Nothing here runs a program.
//
// Hazard: what belongs to a container's network namespace is done through a
// socket made inside it; the thread that makes the socket is there only for
// that moment.
package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sampan/proto"
)

// Network is the guest's network. Its methods may be called from several
// goroutines.
type Network struct {
	mtu    int
	uplink string // interface to the outside, or ""

	mu      sync.Mutex
	bridges map[string]bridge
	veths   atomic.Uint64 // names given so far
}

// bridge is one that is up.
type bridge struct {
	index   int
	gateway string
}

// New brings the uplink up and returns the network. Without an uplink,
// containers reach each other only.
func New(u *proto.Uplink) (*Network, error) {
	n := &Network{bridges: map[string]bridge{}}
	if u == nil {
		return n, nil
	}
	name, err := uplinkUp(u)
	if err != nil {
		return nil, fmt.Errorf("uplink: %w", err)
	}
	n.uplink, n.mtu = name, int(u.Mtu)
	return n, nil
}

// Allow puts the firewall up. It needs the kernel's nftables, which the boot
// may load after New.
func (n *Network) Allow() error {
	if err := replaceTable(n.uplink); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// uplinkUp sets up the guest's network card and returns its name.
func uplinkUp(u *proto.Uplink) (string, error) {
	link, err := linkByMAC(u.Mac)
	if err != nil {
		return "", err
	}
	if u.Mtu != 0 {
		if err := netlink.LinkSetMTU(link, int(u.Mtu)); err != nil {
			return "", fmt.Errorf("set MTU %d: %w", u.Mtu, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return "", fmt.Errorf("bring %s up: %w", link.Attrs().Name, err)
	}
	if err := addAddress(nil, link, u.Address); err != nil {
		return "", err
	}
	return link.Attrs().Name, addDefaultRoute(nil, link, u.Gateway)
}

func linkByMAC(mac string) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Attrs().HardwareAddr.String() == want.String() {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no network card has the address %s", mac)
}

// Prepare makes sure that the bridge of an endpoint is up.
func (n *Network) Prepare(e *proto.Endpoint) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err := n.bridgeLocked(e)
	return err
}

func (n *Network) bridgeLocked(e *proto.Endpoint) (bridge, error) {
	if b, ok := n.bridges[e.Bridge]; ok && b.gateway == e.Gateway {
		return b, nil
	}
	link, err := makeBridge(e.Bridge, n.mtu)
	if err != nil {
		return bridge{}, fmt.Errorf("bridge %s: %w", e.Bridge, err)
	}
	if err := addAddress(nil, link, e.Gateway); err != nil {
		return bridge{}, fmt.Errorf("bridge %s: %w", e.Bridge, err)
	}
	b := bridge{link.Attrs().Index, e.Gateway}
	n.bridges[e.Bridge] = b
	return b, nil
}

// makeBridge makes a bridge or returns the one that exists.
func makeBridge(name string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = name, mtu, net.FlagUp
	// An address of its own, or it changes with each interface that joins.
	attrs.HardwareAddr = bridgeMAC(name)
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("the guest has a %s of this name", link.Type())
	}
	return link, netlink.LinkSetUp(link)
}

// bridgeMAC is a locally administered address made from a bridge's name.
func bridgeMAC(name string) net.HardwareAddr {
	h := fnv.New32a()
	h.Write([]byte(name))
	return net.HardwareAddr(h.Sum([]byte{0x02, 0x42}))
}

// Join gives the network namespace of the process pid an interface per
// endpoint; the first endpoint has the default route. Interfaces end with the
// namespace.
func (n *Network) Join(pid int, endpoints []*proto.Endpoint) error {
	if len(endpoints) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer h.Close()
	for i, e := range endpoints {
		if err := n.join(h, ns, e, i == 0); err != nil {
			return fmt.Errorf("interface %s on %s: %w", e.Name, e.Bridge, err)
		}
	}
	return nil
}

func (n *Network) join(h *netlink.Handle, ns *os.File, e *proto.Endpoint, first bool) error {
	n.mu.Lock()
	b, err := n.bridgeLocked(e)
	n.mu.Unlock()
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(e.Mac)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("veth%x", n.veths.Add(1))
	attrs.MTU, attrs.MasterIndex, attrs.Flags = n.mtu, b.index, net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = e.Name, mac, netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	link, err := h.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if err := addAddress(h, link, e.Address); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	if !first || e.Gateway == "" {
		return nil
	}
	gw, _, err := net.ParseCIDR(e.Gateway)
	if err != nil {
		return err
	}
	return addDefaultRoute(h, link, gw.String())
}

// handle is here or, when h is nil, the guest's own namespace.
func handle(h *netlink.Handle) *netlink.Handle {
	if h == nil {
		return &netlink.Handle{} // opens a socket per request
	}
	return h
}

func addAddress(h *netlink.Handle, link netlink.Link, cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("address %q: %w", cidr, err)
	}
	if err := handle(h).AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", cidr, err)
	}
	return nil
}

func addDefaultRoute(h *netlink.Handle, link netlink.Link, gateway string) error {
	ip := net.ParseIP(gateway)
	if ip == nil {
		return fmt.Errorf("gateway %q: not an IP address", gateway)
	}
	err := handle(h).RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: ip})
	if err != nil {
		return fmt.Errorf("add default route by %s: %w", gateway, err)
	}
	return nil
}
