// Package network connects containers inside the guest: a bridge per network,
// a pair of virtual interfaces per container and network, one nftables table
// that lets containers out by the guest's own network card, and a server of
// names for the containers of networks that want one.
//
//	container eth0 ── veth ── bridge (gateway address) ── nftables ── uplink
//	          127.0.0.11 ── the agent's sockets, made in the container's namespace
//
// Everything is declarative and idempotent: a bridge that exists is adjusted,
// the table is replaced as a whole. Nothing here runs a program.
//
// Hazard: what belongs to a container's network namespace is done through a
// socket made inside it; the thread that makes the socket is there only for
// that moment, and in no other namespace of the container's: nobody in it can
// see the agent.
package network

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sampan/proto"
)

// Network is the guest's network. Its methods may be called from several
// goroutines.
type Network struct {
	mtu     int
	uplink  string   // interface to the outside, or ""
	servers []string // the uplink's name servers, as HOST:PORT
	// replace makes the nftables table that is wanted.
	replace func(*policy) error

	veths atomic.Uint64 // names given so far
	turns atomic.Uint32 // of those who share a name

	mu    sync.Mutex
	nets  map[string]*bridged // by ID
	boxes map[string]*box     // by container
	table *policy             // in force; nil before the first
}

// bridged is a network whose bridge is up.
type bridged struct {
	spec  *proto.Network
	index int                  // of the bridge
	ends  map[string]*endpoint // by container
}

// New brings the uplink up and returns the network. Without an uplink,
// containers reach each other only.
func New(u *proto.Uplink) (*Network, error) {
	n := &Network{replace: replaceTable, nets: map[string]*bridged{}, boxes: map[string]*box{}}
	if u == nil {
		return n, nil
	}
	name, err := uplinkUp(u)
	if err != nil {
		return nil, fmt.Errorf("uplink: %w", err)
	}
	n.uplink, n.mtu, n.servers = name, int(u.Mtu), serverAddresses(u.Dns)
	return n, nil
}

// serverAddresses adds the port of DNS.
func serverAddresses(ips []string) []string {
	list := make([]string, 0, len(ips))
	for _, ip := range ips {
		list = append(list, net.JoinHostPort(ip, "53"))
	}
	return list
}

// Allow puts the firewall up. It needs the kernel's nftables, which the boot
// may load after New.
func (n *Network) Allow() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.firewallLocked("")
}

// Exercise sends a request for a connection of each family within the guest,
// where nobody takes it. With the first one the kernel draws its secrets and
// patches the code that asks for them, which is better done early; see guest/boot.
func Exercise() error {
	return errors.Join(
		exercise(unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		exercise(unix.AF_INET6, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}),
	)
}

// exercise needs no more than the kernel's way to a refusal: a whole connection is
// five times the code, all of which is to be translated under emulation.
func exercise(family int, loopback unix.Sockaddr) (err error) {
	defer func() {
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6
			err = nil
		} else if err != nil {
			err = fmt.Errorf("connect within the guest: %w", err)
		}
	}()
	// A port that is taken, but not listened to.
	taken, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(taken)
	if err := unix.Bind(taken, loopback); err != nil {
		return os.NewSyscallError("bind", err)
	}
	addr, err := unix.Getsockname(taken)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, addr); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("want a refusal, got %w", cmp.Or(err, errors.New("a connection")))
	}
	return nil
}

// firewallLocked replaces the firewall by what the networks and containers want,
// and one more internal bridge, unless it is so already.
func (n *Network) firewallLocked(internal string) error {
	want := n.policyLocked(internal)
	if n.table != nil && want.equal(n.table) {
		return nil
	}
	if err := n.replace(want); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	n.table = want
	return nil
}

// adjustLocked adjusts the firewall, once it's up.
func (n *Network) adjustLocked() error {
	if n.table == nil {
		return nil
	}
	return n.firewallLocked("")
}

func (n *Network) policyLocked(internal string) *policy {
	p := &policy{uplink: n.uplink, ports: n.publishedLocked()}
	if internal != "" {
		p.internal = append(p.internal, internal)
	}
	for _, b := range n.nets {
		if b.spec.Internal {
			p.internal = append(p.internal, b.spec.Bridge)
		} else if len(p.ports) > 0 {
			p.gateways = append(p.gateways, b.gateways4()...)
		}
	}
	slices.Sort(p.internal)
	slices.SortFunc(p.gateways, netip.Addr.Compare)
	return p
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
	if err := makeNoIPv6(&netlink.Handle{}, link); err != nil {
		return "", err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return "", fmt.Errorf("bring %s up: %w", link.Attrs().Name, err)
	}
	if err := addAddress(nil, link, u.Address); err != nil {
		return "", err
	}
	return link.Attrs().Name, setDefaultRoute(nil, link.Attrs().Index, u.Gateway)
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

// bridgeLocked makes sure that a network's bridge is up.
func (n *Network) bridgeLocked(spec *proto.Network) (*bridged, error) {
	if b := n.nets[spec.GetId()]; b != nil {
		return b, nil
	}
	if spec.GetId() == "" || spec.Bridge == "" {
		return nil, errors.New("network without ID or bridge")
	}
	if spec.Internal { // nothing of it may leave in between
		if err := n.firewallLocked(spec.Bridge); err != nil {
			return nil, err
		}
	}
	link, err := makeBridge(spec.Bridge, n.mtuOf(spec), slices.ContainsFunc(spec.Gateways, isIPv6))
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", spec.Bridge, err)
	}
	for _, gw := range spec.Gateways {
		if err := addAddress(nil, link, gw); err != nil {
			return nil, errors.Join(fmt.Errorf("bridge %s: %w", spec.Bridge, err), netlink.LinkDel(link))
		}
	}
	if !spec.Internal {
		if err := routeLoopback(spec.Bridge); err != nil {
			return nil, errors.Join(fmt.Errorf("bridge %s: %w", spec.Bridge, err), netlink.LinkDel(link))
		}
	}
	b := &bridged{spec: spec, index: link.Attrs().Index, ends: map[string]*endpoint{}}
	n.nets[spec.Id] = b
	if err := n.adjustLocked(); err != nil { // its gateway has the published ports, too
		delete(n.nets, spec.Id)
		return nil, errors.Join(err, netlink.LinkDel(link))
	}
	return b, nil
}

func isIPv6(cidr string) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Addr().Is6()
}

// makeNoIPv6 keeps the kernel from making a link-local address when an interface
// comes up, and from telling everybody of it. Nothing to do where it lacks IPv6.
func makeNoIPv6(h *netlink.Handle, link netlink.Link) error {
	err := h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("have no link-local address made: %w", err)
	}
	return nil
}

// gateways4 are the bridge's IPv4 addresses.
func (b *bridged) gateways4() []netip.Addr {
	var list []netip.Addr
	for _, cidr := range b.spec.Gateways {
		if p, err := netip.ParsePrefix(cidr); err == nil && p.Addr().Is4() {
			list = append(list, p.Addr())
		}
	}
	return list
}

func (n *Network) mtuOf(spec *proto.Network) int {
	if spec.Mtu != 0 {
		return int(spec.Mtu)
	}
	return n.mtu
}

// Remove deletes a network that no container is in. Idempotent.
func (n *Network) Remove(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.nets[id]
	if b == nil {
		return nil
	}
	if len(b.ends) > 0 {
		return fmt.Errorf("network %s is in use by container %s", b.spec.Name, slices.Min(slices.Collect(maps.Keys(b.ends))))
	}
	err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.index}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete bridge %s: %w", b.spec.Bridge, err)
	}
	delete(n.nets, id)
	return n.adjustLocked()
}

// makeBridge makes a bridge or returns the one that exists.
func makeBridge(name string, mtu int, ipv6 bool) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
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
	if !ipv6 {
		if err := makeNoIPv6(&netlink.Handle{}, link); err != nil {
			return nil, err
		}
	}
	return link, netlink.LinkSetUp(link)
}

// bridgeMAC is a locally administered address made from a bridge's name.
func bridgeMAC(name string) net.HardwareAddr {
	h := fnv.New32a()
	h.Write([]byte(name))
	return net.HardwareAddr(h.Sum([]byte{0x02, 0x42}))
}

// handle is h or, when h is nil, the guest's own namespace.
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
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD // the host sees to it that it's the only one
	}
	if err := handle(h).AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", cidr, err)
	}
	return nil
}

func setDefaultRoute(h *netlink.Handle, index int, gateway string) error {
	ip := net.ParseIP(gateway)
	if ip == nil {
		return fmt.Errorf("gateway %q: not an IP address", gateway)
	}
	if err := handle(h).RouteReplace(&netlink.Route{LinkIndex: index, Gw: ip}); err != nil {
		return fmt.Errorf("set default route by %s: %w", gateway, err)
	}
	return nil
}
