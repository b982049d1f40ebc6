package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sampan/guest/network/dns"
	"sampan/proto"
)

// box is a running container's network namespace.
type box struct {
	id string
	// change is held by who adds and takes away interfaces.
	change sync.Mutex
	ns     *os.File // nil once the container has left
	server *dns.Server
	routed *endpoint // has the default route

	// Of Network.mu:
	ends    []*endpoint // by precedence
	servers []string    // name servers of its own, as HOST:PORT
	// published are its ports on the host's every address.
	published []*proto.Published
}

// endpoint is a container's interface.
type endpoint struct {
	net   *bridged
	box   *box
	veth  int // index of its end in the guest
	index int // of its end in the container
	addrs []netip.Addr

	spec *proto.Endpoint // of Network.mu: names and links may change
}

// Join gives the network namespace of the process pid, the container's first,
// an interface per endpoint. Interfaces end with the namespace. After Join the
// container must Leave, whatever Join returns.
func (n *Network) Join(id string, pid int, endpoints []*proto.Endpoint, r *proto.Resolver, ports []*proto.Published) error {
	b, err := n.open(id, pid, r)
	if err != nil {
		return err
	}
	b.change.Lock()
	defer b.change.Unlock()
	if err := n.joinLocked(b, endpoints...); err != nil || len(ports) == 0 {
		return err
	}
	return n.Publish(id, ports)
}

// Connect is Join for one endpoint of a container that is running, and says
// whether the container has a server of names since. In a network where it is
// already, it gets the endpoint's names and links.
func (n *Network) Connect(id string, pid int, e *proto.Endpoint, r *proto.Resolver) (resolves bool, err error) {
	n.mu.Lock()
	b := n.boxes[id]
	if net := n.nets[e.GetNetwork().GetId()]; net != nil && net.ends[id] != nil {
		net.ends[id].spec = e
		n.mu.Unlock()
		return false, nil
	}
	n.mu.Unlock()
	if b == nil {
		if b, err = n.open(id, pid, r); err != nil {
			return false, err
		}
	}
	b.change.Lock()
	defer b.change.Unlock()
	had := b.server != nil
	err = n.joinLocked(b, e)
	return err == nil && !had && b.server != nil, err
}

// open lists a container's namespace.
func (n *Network) open(id string, pid int, r *proto.Resolver) (*box, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	b := &box{id: id, ns: ns, servers: serverAddresses(r.GetServers())}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[id] != nil {
		ns.Close()
		return nil, fmt.Errorf("container %s has a network already", id)
	}
	n.boxes[id] = b
	return b, nil
}

// joinLocked adds interfaces; the caller holds b.change.
func (n *Network) joinLocked(b *box, endpoints ...*proto.Endpoint) error {
	if b.ns == nil {
		return errors.New("the container has ended")
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(b.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer h.Close()
	var made []*endpoint
	undo := func(err error) error {
		for _, e := range made {
			err = errors.Join(err, n.unplug(e))
		}
		return err
	}
	for _, spec := range endpoints {
		e, err := n.plug(h, b, spec)
		if err != nil {
			return undo(fmt.Errorf("interface %s on %s: %w", spec.Name, spec.Network.GetBridge(), err))
		}
		made = append(made, e)
		if spec.Network.Resolve && b.server == nil {
			// The address to serve on is there with the interface, which is the
			// process's to bring up, in its own time.
			err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopback}})
			if err == nil {
				b.server, err = n.serveNames(b)
			}
			if err != nil {
				return undo(fmt.Errorf("server of names: %w", err))
			}
		}
	}
	if err := b.route(h); err != nil {
		return undo(err) // their addresses are others' now
	}
	return n.reach(b)
}

// reach adjusts where a container's published ports lead to, after a change of
// its endpoints.
func (n *Network) reach(b *box) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(b.published) == 0 {
		return nil
	}
	return n.firewallLocked("")
}

// loopback is the index of a namespace's first interface.
const loopback = 1

// plug makes an interface and lists it.
func (n *Network) plug(h *netlink.Handle, b *box, spec *proto.Endpoint) (e *endpoint, err error) {
	n.mu.Lock()
	br, err := n.bridgeLocked(spec.Network)
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	e = &endpoint{net: br, box: b, spec: spec}
	for _, cidr := range spec.Addresses {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, err
		}
		e.addrs = append(e.addrs, p.Addr())
	}
	mac, err := net.ParseMAC(spec.Mac)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("veth%x", n.veths.Add(1))
	attrs.MTU, attrs.MasterIndex, attrs.Flags = n.mtuOf(spec.Network), br.index, net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = spec.Name, mac, netlink.NsFd(b.ns.Fd())
	veth.PeerMTU = uint32(attrs.MTU)
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, err
	}
	e.veth = veth.Attrs().Index // LinkAdd has looked it up
	defer func() {
		if err != nil {
			netlink.LinkDel(veth)
		}
	}()
	link, err := h.LinkByName(spec.Name)
	if err != nil {
		return nil, err
	}
	e.index = link.Attrs().Index
	if !slices.ContainsFunc(e.addrs, netip.Addr.Is6) {
		// As with Docker, no link-local one either.
		if err := makeNoIPv6(h, link); err != nil {
			return nil, err
		}
	}
	for _, cidr := range spec.Addresses {
		if err := addAddress(h, link, cidr); err != nil {
			return nil, err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nets[br.spec.Id] != br {
		return nil, errors.New("the network was removed meanwhile")
	}
	br.ends[b.id] = e
	b.ends = append(b.ends, e)
	slices.SortStableFunc(b.ends, precedence)
	return e, nil
}

// precedence orders a container's endpoints: the first that can has the default
// route, and is asked first for names.
func precedence(a, b *endpoint) int {
	return cmp.Or(cmp.Compare(b.spec.Priority, a.spec.Priority), strings.Compare(a.net.spec.Name, b.net.spec.Name))
}

// unplug deletes an interface, which is listed until it's gone; the caller holds
// its box's change.
func (n *Network) unplug(e *endpoint) error {
	err := netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: e.veth}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(e.net.ends, e.box.id)
	e.box.ends = slices.DeleteFunc(e.box.ends, func(o *endpoint) bool { return o == e })
	return nil
}

// route gives the default route to the endpoint that is to have it; the caller
// holds change, and so nobody else changes ends.
func (b *box) route(h *netlink.Handle) error {
	for _, e := range b.ends {
		if e.net.spec.Internal {
			continue
		}
		for _, cidr := range e.net.spec.Gateways {
			gw, err := netip.ParsePrefix(cidr)
			if err != nil {
				return err
			}
			// Nothing leaves the guest by IPv6: a route would only delay.
			if !gw.Addr().Is4() {
				continue
			}
			if b.routed == e {
				return nil
			}
			if err := setDefaultRoute(h, e.index, gw.Addr().String()); err != nil {
				return err
			}
			b.routed = e
			return nil
		}
	}
	b.routed = nil // it went with its interface
	return nil
}

// Disconnect takes a container out of a network. Idempotent.
func (n *Network) Disconnect(id, network string) error {
	n.mu.Lock()
	b := n.boxes[id]
	n.mu.Unlock()
	if b == nil {
		return nil
	}
	b.change.Lock()
	defer b.change.Unlock()
	if b.ns == nil {
		return nil
	}
	i := slices.IndexFunc(b.ends, func(e *endpoint) bool { return e.net.spec.Id == network })
	if i < 0 {
		return nil
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(b.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer h.Close()
	e := b.ends[i]
	if err := n.unplug(e); err != nil {
		return fmt.Errorf("delete interface of container %s on %s: %w", id, e.net.spec.Bridge, err)
	}
	if b.routed == e {
		b.routed = nil
	}
	return errors.Join(b.route(h), n.reach(b))
}

// Addresses of a container in a network.
func (n *Network) Addresses(id, network string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if net := n.nets[network]; net != nil && net.ends[id] != nil {
		return net.ends[id].addrs
	}
	return nil
}

// Leave forgets a container that has ended. Idempotent.
func (n *Network) Leave(id string) error {
	n.mu.Lock()
	b := n.boxes[id]
	if b == nil {
		n.mu.Unlock()
		return nil
	}
	delete(n.boxes, id)
	for _, e := range b.ends {
		delete(e.net.ends, id)
	}
	var err error
	if len(b.published) > 0 {
		err = n.firewallLocked("")
	}
	n.mu.Unlock()
	b.change.Lock()
	defer b.change.Unlock()
	if b.server != nil {
		err = errors.Join(err, b.server.Close())
	}
	err = errors.Join(err, b.ns.Close())
	b.ns = nil
	return err
}
