package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"sampan/proto"
)

// endpoint is a running container's end of a network. It does not change but
// for owner and names, which a rename replaces; the Engine's netMu guards them.
type endpoint struct {
	id        string
	container string // ID
	net       *networkState
	ifname    string // in the container
	addrs     []netip.Prefix
	mac       apinet.HardwareAddr
	asked     *apinet.EndpointSettings
	owner     string   // the container's name
	names     []string // by which others find it
}

// endpoints of a run, in the order of its interfaces.
func (r *run) endpoints() []*endpoint {
	r.netMu.Lock()
	defer r.netMu.Unlock()
	return slices.Clone(r.ends)
}

// gateway is the endpoint by which the container is reached from outside, and
// gets there itself; nil when there is none. The guest chooses alike.
func (r *run) gateway() *endpoint {
	var best *endpoint
	for _, ep := range r.endpoints() {
		if ep.net.Driver != driverBridge || ep.net.Internal {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(best.asked.GwPriority, ep.asked.GwPriority), strings.Compare(ep.net.Name, best.net.Name)) < 0 {
			best = ep
		}
	}
	return best
}

// target is where the guest finds a port of the container; "" when it can't.
func (r *run) target(port apinet.Port) string {
	if ep := r.gateway(); ep != nil {
		for _, a := range ep.addrs {
			if a.Addr().Is4() {
				return netip.AddrPortFrom(a.Addr(), port.Num()).String()
			}
		}
	}
	return ""
}

// userDefined says whether a name is that of a network that somebody has made.
func userDefined(name string) bool { return container.NetworkMode(name).IsUserDefined() }

// resolves says whether names are resolved for one of the endpoints.
func resolves(ends []*endpoint) bool {
	return slices.ContainsFunc(ends, func(ep *endpoint) bool { return ep.net.userDefined() })
}

// dnsNames are those by which others find a container in a network: the first
// is told for its addresses.
func dnsNames(rec *record, a attachment) []string {
	var names []string
	for _, n := range slices.Concat([]string{rec.Name}, a.Asked.Aliases, []string{rec.ID[:12], rec.Config.Hostname}) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// attachments are the networks that a new container is to be in. They need not
// exist yet.
func (e *Engine) attachments(h *container.HostConfig, n *apinet.NetworkingConfig) ([]attachment, error) {
	asked := map[string]*apinet.EndpointSettings{}
	if n != nil {
		for name, ep := range n.EndpointsConfig {
			asked[endpointNetwork(name)] = ep
		}
	}
	mode := endpointNetwork(string(h.NetworkMode))
	if h.NetworkMode.IsContainer() {
		if len(asked) > 0 {
			return nil, errSharedNetwork
		}
		return nil, nil
	}
	if len(asked) == 0 {
		asked[mode] = nil
	}
	var list []attachment
	for name, ep := range asked {
		if ep == nil {
			ep = &apinet.EndpointSettings{}
		}
		ep.DNSNames = nil // ours to say
		a := attachment{Name: name, Asked: ep}
		known, err := e.network(name)
		if err == nil {
			a.Name, a.ID = known.Name, known.ID
		}
		if mode == name && len(h.Links) > 0 && h.NetworkMode.IsUserDefined() {
			ep.Links = append(slices.Clone(ep.Links), h.Links...)
		}
		if err := checkEndpoint(known, a); err != nil {
			return nil, fmt.Errorf("invalid config for network %s: invalid endpoint settings:\n%w", a.Name, err)
		}
		for _, other := range list {
			if err := checkTogether(other.Name, a.Name); err != nil {
				return nil, err
			}
			if other.Name == a.Name {
				return nil, invalid("network %s is given more than once", a.Name)
			}
		}
		if name == mode { // its interface is the first, and its name the network's own
			h.NetworkMode = container.NetworkMode(a.Name)
			mode = a.Name
		}
		list = append(list, a)
	}
	if h.NetworkMode.IsHost() || h.NetworkMode.IsNone() {
		if err := checkTogether(string(h.NetworkMode), list[0].Name); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b attachment) int {
		if first := a.Name == mode; first != (b.Name == mode) {
			if first {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list, nil
}

// Docker's words for what can't be together.
var (
	errHostNetwork   = invalid("container cannot be disconnected from host network or connected to host network")
	errNoNetwork     = invalid("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	errLegacyLink    = unsupported("a link that is not in HostConfig.Links, in the default network: that")
	errSharedNetwork = invalid("container sharing network namespace with another container or host cannot be connected to any other network")
)

// checkTogether refuses two networks that no container can be in at once.
func checkTogether(a, b string) error {
	switch {
	case a == b:
		return nil
	case a == apinet.NetworkHost, b == apinet.NetworkHost:
		return errHostNetwork
	case a == apinet.NetworkNone, b == apinet.NetworkNone:
		return errNoNetwork
	}
	return nil
}

// checkEndpoint refuses what can't be had of a network, which is nil when it
// isn't known yet.
func checkEndpoint(n *networkState, a attachment) error {
	ep := a.Asked
	custom := userDefined(a.Name)
	if !custom && len(ep.Aliases) > 0 {
		return invalid("network-scoped aliases are only supported for user-defined networks")
	}
	if c := ep.IPAMConfig; c != nil {
		for _, ip := range []netip.Addr{c.IPv4Address, c.IPv6Address} {
			if !ip.IsValid() {
				continue
			}
			if !custom || n != nil && !slices.ContainsFunc(n.Asked, func(p netip.Prefix) bool { return p.Addr().Is4() == ip.Is4() }) {
				return invalid("user specified IP address is supported only when connecting to networks with user configured subnets")
			}
			if n != nil && !slices.ContainsFunc(n.IPAM.Config, func(c apinet.IPAMConfig) bool { return usable(c.Subnet, ip) }) {
				return invalid("no configured subnet or ip-range contain the IP address %s", ip)
			}
		}
		if c.IPv4Address.IsValid() && !c.IPv4Address.Is4() || c.IPv6Address.IsValid() && !c.IPv6Address.Is6() {
			return invalid("invalid IP address: one of the other family")
		}
	}
	for _, l := range ep.Links {
		if name, _, _ := strings.Cut(l, ":"); name == "" {
			return invalid("invalid link %q", l)
		}
	}
	if m := ep.MacAddress; len(m) > 0 && (len(m) != 6 || m[0]&1 != 0) {
		return invalid("invalid MAC address: %s", m)
	}
	bridge := custom || a.Name == apinet.NetworkBridge
	if len(ep.Links) > 0 && !custom {
		return errLegacyLink
	}
	return refuse([]named{
		{"NetworkingConfig.DriverOpts", len(ep.DriverOpts) > 0},
		{"NetworkingConfig.IPAMConfig.LinkLocalIPs", ep.IPAMConfig != nil && len(ep.IPAMConfig.LinkLocalIPs) > 0},
		{"NetworkingConfig.MacAddress in the network " + a.Name, len(ep.MacAddress) > 0 && !bridge},
	})
}

// join gives a run its place in the record's networks. What is known of them
// since is noted in the record.
func (e *Engine) join(rec *record, r *run) error {
	list := slices.Clone(rec.Networks)
	for i := range list {
		ep, err := e.attach(rec, &list[i], fmt.Sprintf("eth%d", i))
		if err != nil {
			return err
		}
		r.netMu.Lock()
		r.ends = append(r.ends, ep)
		r.netMu.Unlock()
	}
	rec.Networks = list
	return nil
}

// attach takes a place, and addresses, in a network.
func (e *Engine) attach(rec *record, a *attachment, ifname string) (*endpoint, error) {
	e.netMu.Lock()
	defer e.netMu.Unlock()
	key := a.ID
	if key == "" {
		key = a.Name
	}
	n, err := e.networkLocked(key)
	if err != nil {
		return nil, err
	}
	a.Name, a.ID = n.Name, n.ID
	if err := checkEndpoint(n, *a); err != nil {
		return nil, err
	}
	if n.ends[rec.ID] != nil {
		return nil, errForbidden("endpoint with name %s already exists in network %s", rec.Name, n.Name)
	}
	ep := &endpoint{
		id: endpointID(rec.ID, n.ID), container: rec.ID, net: n, ifname: ifname, mac: a.Asked.MacAddress,
		asked: a.Asked, owner: rec.Name,
	}
	if n.userDefined() {
		ep.names = dnsNames(rec, *a)
	}
	for _, c := range n.IPAM.Config {
		ip, err := n.takeLocked(&c, a.Asked.IPAMConfig)
		if err != nil {
			return nil, err
		}
		ep.addrs = append(ep.addrs, netip.PrefixFrom(ip, c.Subnet.Bits()))
		if ip.Is4() && len(ep.mac) == 0 {
			ep.mac = apinet.HardwareAddr(macOf(ip))
		}
	}
	n.ends[rec.ID] = ep
	return ep, nil
}

// takeLocked finds the address that was asked for, or one that is free; the
// caller holds netMu.
func (n *networkState) takeLocked(c *apinet.IPAMConfig, asked *apinet.EndpointIPAMConfig) (netip.Addr, error) {
	used := func(a netip.Addr) bool {
		for _, ep := range n.ends {
			if slices.ContainsFunc(ep.addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
				return true
			}
		}
		return false
	}
	if asked != nil {
		want := asked.IPv4Address
		if c.Subnet.Addr().Is6() {
			want = asked.IPv6Address
		}
		if want.IsValid() {
			if used(want) || want == c.Gateway {
				return want, errForbidden("Address already in use")
			}
			return want, nil
		}
	}
	taken := map[netip.Addr]bool{}
	for _, ep := range n.ends {
		for _, p := range ep.addrs {
			taken[p.Addr()] = true
		}
	}
	ip := firstFree(c, func(a netip.Addr) bool { return taken[a] })
	if !ip.IsValid() {
		return ip, errForbidden("no available IPv%d addresses on this network's address pools: %s (%s)", familyOf(c.Subnet), n.Name, n.ID)
	}
	return ip, nil
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 4
	}
	return 6
}

// detach gives a place in a network back.
func (e *Engine) detach(ep *endpoint) {
	e.netMu.Lock()
	defer e.netMu.Unlock()
	if ep.net.ends[ep.container] == ep {
		delete(ep.net.ends, ep.container)
	}
}

// leave gives all of a run's places back; r.left is set, so that none is added.
func (e *Engine) leave(r *run) {
	for _, ep := range r.endpoints() {
		e.detach(ep)
	}
}

// describe adds what a running container's endpoint has.
func (ep *endpoint) describe(s *apinet.EndpointSettings) {
	s.EndpointID, s.MacAddress = ep.id, ep.mac
	for i, a := range ep.addrs {
		gateway := ep.net.IPAM.Config[i].Gateway
		if ep.net.Internal {
			gateway = netip.Addr{}
		}
		if a.Addr().Is4() {
			s.IPAddress, s.IPPrefixLen, s.Gateway = a.Addr(), a.Bits(), gateway
		} else {
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen, s.IPv6Gateway = a.Addr(), a.Bits(), gateway
		}
	}
}

// proto describes an endpoint to the guest.
func (ep *endpoint) proto() *proto.Endpoint {
	p := &proto.Endpoint{
		Network: ep.net.proto(), Mac: ep.mac.String(), Name: ep.ifname,
		Priority: int32(ep.asked.GwPriority), Names: ep.names,
	}
	for _, a := range ep.addrs {
		p.Addresses = append(p.Addresses, a.String())
	}
	for _, l := range ep.asked.Links {
		target, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = target
		}
		if p.Links == nil {
			p.Links = map[string]string{}
		}
		p.Links[alias] = target
	}
	return p
}

// resolver tells the guest whom a container asks for other names.
func resolver(rec *record) *proto.Resolver {
	r := new(proto.Resolver)
	for _, a := range rec.HostConfig.DNS {
		r.Servers = append(r.Servers, a.String())
	}
	return r
}

// sharedNetwork finds the container whose network a container is to be in.
func (e *Engine) sharedNetwork(rec *record) (*record, []*endpoint, error) {
	name := rec.HostConfig.NetworkMode.ConnectedContainer()
	c, err := e.find(name)
	if err != nil {
		return nil, nil, err
	}
	if c.id == rec.ID {
		return nil, nil, conflict("cannot join own network namespace")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return nil, nil, conflict("cannot join network namespace of a non running container: container %s is %s", strings.TrimPrefix(name, "/"), c.rec.State.Status)
	}
	if c.rec.HostConfig.NetworkMode.IsContainer() || c.rec.HostConfig.NetworkMode.IsHost() {
		return nil, nil, unsupported("joining the network of a container that is in another's itself")
	}
	owner := c.rec
	return &owner, c.run.endpoints(), nil
}

// withContainer calls f while nobody starts or removes a container.
func (e *Engine) withContainer(ctx context.Context, name string, f func(c *ctr) error) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	select {
	case c.op <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.op }()
	c.mu.Lock()
	removing := c.removing || c.rec.Removing
	c.mu.Unlock()
	if removing {
		return conflict("container %s is marked for removal and cannot be connected or disconnected to the network", name)
	}
	return f(c)
}

// NetworkConnect puts a container into one more network, at once when it runs.
func (e *Engine) NetworkConnect(ctx context.Context, network, name string, asked *apinet.EndpointSettings) error {
	if asked == nil {
		asked = &apinet.EndpointSettings{}
	}
	asked.DNSNames = nil
	n, err := e.network(network)
	if err != nil {
		return err
	}
	a := attachment{Name: n.Name, ID: n.ID, Asked: asked}
	if err := checkEndpoint(n, a); err != nil {
		return fmt.Errorf("invalid config for network %s: invalid endpoint settings:\n%w", n.Name, err)
	}
	return e.withContainer(ctx, name, func(c *ctr) error {
		c.mu.Lock()
		rec, r := c.rec, c.run
		c.mu.Unlock()
		if rec.HostConfig.NetworkMode.IsContainer() {
			return errSharedNetwork
		}
		for _, other := range rec.Networks {
			if err := checkTogether(other.Name, n.Name); err != nil {
				return err
			}
		}
		if r != nil {
			if err := e.plug(ctx, &rec, r, a); err != nil {
				return err
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rec.Networks = append(slices.DeleteFunc(slices.Clone(rec.Networks), func(o attachment) bool { return o.Name == a.Name }), a)
		return e.save(c)
	})
}

// plug gives a running container one more endpoint.
func (e *Engine) plug(ctx context.Context, rec *record, r *run, a attachment) error {
	if a.Name == apinet.NetworkHost {
		return errHostNetwork
	}
	var taken []string
	for _, ep := range r.endpoints() {
		taken = append(taken, ep.ifname)
	}
	ifname := ""
	for i := 0; ifname == "" || slices.Contains(taken, ifname); i++ {
		ifname = fmt.Sprintf("eth%d", i)
	}
	reached := r.gateway() != nil
	ep, err := e.attach(rec, &a, ifname)
	if err != nil {
		return err
	}
	if ep.net.Driver == driverBridge {
		_, err = r.guest.Connect(ctx, &proto.ConnectRequest{
			Container: rec.ID, Endpoint: ep.proto(), Resolver: resolver(rec),
			ResolvConf: resolvConf(rec, e.cfg.DNS, true), Hosts: hostsLines(rec, ep),
		})
		if err != nil {
			e.detach(ep)
			return fmt.Errorf("connect container %s to network %s: %s", rec.Name, a.Name, message(err))
		}
	}
	r.netMu.Lock()
	left := r.left
	if !left {
		r.ends = append(r.ends, ep)
	}
	r.netMu.Unlock()
	if left { // it has just ended
		e.detach(ep)
		return nil
	}
	e.emitNetwork(&ep.net.networkRecord, events.ActionConnect, map[string]string{"container": rec.ID})
	if !reached && r.gateway() != nil {
		if err := e.publishAgain(ctx, rec, r); err != nil {
			return errors.Join(err, e.unplug(ctx, rec, r, ep.net, true))
		}
	}
	return nil
}

// publishAgain publishes the ports of a container that can be reached only now.
func (e *Engine) publishAgain(ctx context.Context, rec *record, r *run) error {
	if err := e.publishPorts(rec, r); err != nil {
		return err
	}
	if ports := r.everywhere(); len(ports) > 0 {
		if _, err := r.guest.Publish(ctx, &proto.PublishRequest{Container: rec.ID, Published: ports}); err != nil {
			return fmt.Errorf("publish ports of container %s: %s", rec.Name, message(err))
		}
	}
	return nil
}

// NetworkDisconnect takes a container out of a network, at once when it runs.
// force is for what the guest can't do: the place is given back anyway.
func (e *Engine) NetworkDisconnect(ctx context.Context, network, name string, force bool) error {
	n, err := e.network(network)
	if err != nil {
		return err
	}
	return e.withContainer(ctx, name, func(c *ctr) error {
		c.mu.Lock()
		rec, r := c.rec, c.run
		c.mu.Unlock()
		if rec.HostConfig.NetworkMode.IsHost() && n.Driver == driverHost {
			return errHostNetwork
		}
		left := slices.DeleteFunc(slices.Clone(rec.Networks), func(a attachment) bool { return a.Name == n.Name })
		if len(left) == len(rec.Networks) {
			return errForbidden("container %s is not connected to the network %s", strings.TrimPrefix(name, "/"), n.Name)
		}
		if r != nil {
			if err := e.unplug(ctx, &rec, r, n, force); err != nil {
				return err
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rec.Networks = left
		return e.save(c)
	})
}

// unplug takes an endpoint away from a running container.
func (e *Engine) unplug(ctx context.Context, rec *record, r *run, n *networkState, force bool) error {
	for _, ep := range r.endpoints() {
		if ep.net != n {
			continue
		}
		if n.Driver == driverBridge {
			_, err := r.guest.Disconnect(ctx, &proto.DisconnectRequest{Container: rec.ID, Network: n.ID})
			if err != nil && !force {
				return fmt.Errorf("disconnect container %s from network %s: %s", rec.Name, n.Name, message(err))
			}
		}
		e.detach(ep)
		r.netMu.Lock()
		r.ends = slices.DeleteFunc(r.ends, func(o *endpoint) bool { return o == ep })
		r.netMu.Unlock()
		if r.gateway() == nil {
			told := len(r.everywhere()) > 0
			r.closePorts()
			if told {
				if _, err := r.guest.Publish(ctx, &proto.PublishRequest{Container: rec.ID}); err != nil {
					e.log.Warn("the guest holds on to published ports", "container", rec.ID, "error", message(err))
				}
			}
		}
		e.emitNetwork(&n.networkRecord, events.ActionDisconnect, map[string]string{"container": rec.ID})
	}
	return nil
}

// renameEndpoints tells a running container's networks its new name.
func (e *Engine) renameEndpoints(c *ctr) {
	c.mu.Lock()
	rec, r := c.rec, c.run
	c.mu.Unlock()
	if r == nil {
		return
	}
	var errs []error
	for _, ep := range r.endpoints() {
		e.netMu.Lock()
		ep.owner = rec.Name
		if ep.net.userDefined() {
			ep.names = dnsNames(&rec, attachment{Asked: ep.asked})
		}
		p := ep.proto()
		e.netMu.Unlock()
		if len(p.Names) > 0 {
			_, err := r.guest.Connect(e.ctx, &proto.ConnectRequest{Container: rec.ID, Endpoint: p})
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		e.log.Warn("the guest does not know a container's new name", "id", c.id, "error", err)
	}
}

// onBridge says whether one of the endpoints has an interface.
func onBridge(ends []*endpoint) bool {
	return slices.ContainsFunc(ends, func(ep *endpoint) bool { return ep.net.Driver == driverBridge })
}
