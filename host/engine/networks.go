package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"sampan/proto"
)

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Drivers of networks.
const (
	driverBridge = "bridge"
	driverHost   = "host"
	driverNull   = "null"
)

// Options of a bridge that are known.
const (
	optionDefault    = "com.docker.network.bridge.default_bridge"
	optionName       = "com.docker.network.bridge.name"
	optionMTU        = "com.docker.network.driver.mtu"
	optionICC        = "com.docker.network.bridge.enable_icc"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
)

// networkRecord is what is stored of a network: $SAMPAN_HOME/networks/ID.json.
// It does not change.
type networkRecord struct {
	ID, Name   string
	Created    time.Time
	Driver     string
	IPv6       bool
	Internal   bool
	Attachable bool
	IPAM       apinet.IPAM
	// Asked are the subnets that the user chose: only in those do containers
	// choose their addresses.
	Asked   []netip.Prefix `json:",omitempty"`
	Options map[string]string
	Labels  map[string]string
}

// networkState is a network and who is in it. The Engine's netMu guards the
// maps.
type networkState struct {
	networkRecord
	ends map[string]*endpoint // of running containers, by container
}

func newNetworkState(rec networkRecord) *networkState {
	return &networkState{networkRecord: rec, ends: map[string]*endpoint{}}
}

// builtin says whether a network always exists.
func (n *networkState) builtin() bool {
	return n.ID == builtinID(n.Name)
}

// userDefined networks resolve names, and let containers choose addresses.
func (n *networkState) userDefined() bool { return n.Driver == driverBridge && !n.builtin() }

// builtinID is the same in every home.
func builtinID(name string) string { return hashID("network", name) }

func hashID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// endpointID names a container's end of a network.
func endpointID(container, network string) string { return hashID("endpoint", container, network) }

func (e *Engine) networkPath(id string) string {
	return filepath.Join(e.cfg.Home, "networks", id+".json")
}

// loadNetworks reads the records, and makes the networks that always exist. The
// default bridge keeps out of the others' way, and of the host's.
func (e *Engine) loadNetworks() error {
	files, err := filepath.Glob(e.networkPath("*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		var rec networkRecord
		if err := readJSON(f, &rec); err != nil || rec.ID+".json" != filepath.Base(f) {
			e.log.Error("network's record is damaged: left alone", "file", f, "error", err)
			continue
		}
		e.networks[rec.ID] = newNetworkState(rec)
	}
	subnet, err := freePool(e.pools(), slices.Concat(e.subnetsLocked(), e.cfg.Routes()))
	if err != nil {
		subnet = e.pools()[0].first() // better one that is in the way than none
	}
	for name, driver := range map[string]string{
		apinet.NetworkBridge: driverBridge, apinet.NetworkHost: driverHost, apinet.NetworkNone: driverNull,
	} {
		rec := networkRecord{
			ID: builtinID(name), Name: name, Created: time.Now().UTC(), Driver: driver,
			IPAM:    apinet.IPAM{Driver: "default", Config: []apinet.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		}
		if driver == driverBridge {
			rec.IPAM.Config = []apinet.IPAMConfig{{Subnet: subnet, Gateway: subnet.Addr().Next()}}
			rec.Options = map[string]string{
				optionDefault: "true", optionICC: "true", optionMasquerade: "true", optionName: bridgeName,
			}
		}
		e.networks[rec.ID] = newNetworkState(rec)
	}
	return nil
}

func (e *Engine) pools() []Pool {
	if len(e.cfg.Pools) > 0 {
		return e.cfg.Pools
	}
	return defaultPools()
}

// subnetsLocked are those of all networks, and the uplink's; the caller holds
// netMu.
func (e *Engine) subnetsLocked() []netip.Prefix {
	list := []netip.Prefix{e.cfg.Uplink}
	for _, n := range e.networks {
		for _, c := range n.IPAM.Config {
			list = append(list, c.Subnet)
		}
	}
	return list
}

// network looks a network up by ID, name, or the beginning of its ID.
func (e *Engine) network(name string) (*networkState, error) {
	e.netMu.Lock()
	defer e.netMu.Unlock()
	return e.networkLocked(name)
}

func (e *Engine) networkLocked(name string) (*networkState, error) {
	if n := e.networks[name]; n != nil {
		return n, nil
	}
	var hit *networkState
	for _, n := range e.networks {
		if n.Name == name {
			return n, nil
		}
	}
	for id, n := range e.networks {
		if name != "" && strings.HasPrefix(id, name) {
			if hit != nil {
				return nil, invalid("network %s is ambiguous (2 matches found based on ID prefix)", name)
			}
			hit = n
		}
	}
	if hit == nil {
		return nil, notFound("network %s not found", name)
	}
	return hit, nil
}

func (n *networkState) api() apinet.Network {
	return apinet.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver,
		EnableIPv4: true, EnableIPv6: n.IPv6, IPAM: n.IPAM,
		Internal: n.Internal, Attachable: n.Attachable, Options: n.Options, Labels: n.Labels,
	}
}

// NetworkList returns the networks that match, in no order that means anything.
func (e *Engine) NetworkList(f Filters) ([]apinet.Summary, error) {
	match, err := e.networkFilter(f)
	if err != nil {
		return nil, err
	}
	e.netMu.Lock()
	defer e.netMu.Unlock()
	list := []apinet.Summary{}
	for _, n := range e.networks {
		if match(n) {
			list = append(list, apinet.Summary{Network: n.api()})
		}
	}
	slices.SortFunc(list, func(a, b apinet.Summary) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// networkFilter is the condition of a list; netMu is held where it is applied.
func (e *Engine) networkFilter(f Filters) (func(*networkState) bool, error) {
	if err := f.allow("driver", "id", "label", "name", "scope", "type", "dangling"); err != nil {
		return nil, err
	}
	dangling, byUse, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return nil, invalid("invalid filter: 'type'='%s'", t)
		}
	}
	return func(n *networkState) bool {
		kind := "custom"
		if n.builtin() {
			kind = "builtin"
		}
		return f.equal("driver", n.Driver) && f.contains("id", n.ID) && f.contains("name", n.Name) &&
			f.equal("scope", "local") && f.equal("type", kind) && f.labels("label", n.Labels) &&
			(!byUse || dangling == (!n.builtin() && len(n.ends) == 0))
	}, nil
}

// NetworkInspect describes a network, by its name or the beginning of its ID.
func (e *Engine) NetworkInspect(name string) (apinet.Inspect, error) {
	e.netMu.Lock()
	n, err := e.networkLocked(name)
	if err != nil {
		e.netMu.Unlock()
		return apinet.Inspect{}, err
	}
	in := apinet.Inspect{Network: n.api(), Containers: map[string]apinet.EndpointResource{}}
	ends := maps.Clone(n.ends)
	e.netMu.Unlock()
	for id, ep := range ends {
		c, err := e.find(id)
		if err != nil {
			continue // just gone
		}
		res := apinet.EndpointResource{Name: c.view().rec.Name, EndpointID: ep.id, MacAddress: ep.mac}
		for _, a := range ep.addrs {
			if a.Addr().Is4() {
				res.IPv4Address = a
			} else {
				res.IPv6Address = a
			}
		}
		in.Containers[id] = res
	}
	return in, nil
}

// NetworkCreate makes a network. It never boots the machine.
func (e *Engine) NetworkCreate(req apinet.CreateRequest) (apinet.CreateResponse, error) {
	none := apinet.CreateResponse{}
	if err := checkNetwork(&req); err != nil {
		return none, err
	}
	rec := networkRecord{
		ID: newID(), Name: req.Name, Created: time.Now().UTC(), Driver: driverBridge,
		IPv6: req.EnableIPv6 != nil && *req.EnableIPv6, Internal: req.Internal, Attachable: req.Attachable,
		IPAM: apinet.IPAM{Driver: "default", Options: map[string]string{}}, Options: req.Options, Labels: req.Labels,
	}
	if rec.Options == nil {
		rec.Options = map[string]string{}
	}
	if rec.Labels == nil {
		rec.Labels = map[string]string{}
	}
	var asked []apinet.IPAMConfig
	if req.IPAM != nil {
		asked = req.IPAM.Config
		for _, c := range asked {
			rec.Asked = append(rec.Asked, c.Subnet)
		}
		if req.IPAM.Options != nil {
			rec.IPAM.Options = req.IPAM.Options
		}
	}
	hosts := e.cfg.Routes()
	e.netMu.Lock()
	for _, n := range e.networks {
		if n.Name == rec.Name {
			e.netMu.Unlock()
			return none, conflict("network with name %s already exists", rec.Name)
		}
		if b := rec.Options[optionName]; b != "" && n.Driver == driverBridge && n.bridge() == b {
			e.netMu.Unlock()
			return none, conflict("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name", rec.ID, b, n.ID, n.bridge())
		}
	}
	var err error
	if rec.IPAM.Config, err = planIPAM(rec.ID, rec.IPv6, asked, e.pools(), e.subnetsLocked(), hosts); err == nil {
		err = writeJSON(e.tmp(), e.networkPath(rec.ID), &rec, true)
	}
	if err == nil {
		e.networks[rec.ID] = newNetworkState(rec)
	}
	e.netMu.Unlock()
	if err != nil {
		return none, err
	}
	e.emitNetwork(&rec, events.ActionCreate, nil)
	return apinet.CreateResponse{ID: rec.ID}, nil
}

// checkNetwork refuses what is wrong or not supported, by name.
func checkNetwork(req *apinet.CreateRequest) error {
	switch req.Name {
	case "":
		return invalid("invalid network name: name is empty")
	case apinet.NetworkBridge, apinet.NetworkHost, apinet.NetworkNone, apinet.NetworkDefault:
		return errForbidden("operation is not permitted on predefined %s network ", req.Name)
	}
	if !networkName.MatchString(req.Name) {
		return invalid("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", req.Name)
	}
	switch req.Driver {
	case "", "default", driverBridge:
	case driverHost, driverNull:
		return errForbidden("only one instance of %q network is allowed", req.Driver)
	case "macvlan", "ipvlan", "overlay":
		return unsupported("the network driver %q", req.Driver)
	default:
		return notFound("plugin %q not found", req.Driver)
	}
	if req.IPAM != nil && req.IPAM.Driver != "" && req.IPAM.Driver != "default" {
		return unsupported("the IPAM driver %q", req.IPAM.Driver)
	}
	if req.Scope != "" && req.Scope != "local" {
		return unsupported("networks of scope %q", req.Scope)
	}
	for key, value := range req.Options {
		switch key {
		case optionName:
			if value == "" || len(value) > 15 || strings.ContainsAny(value, "/:% \t\n") || reservedInterface(value) {
				return invalid("invalid bridge name %q", value)
			}
		case optionMTU:
			if n, err := strconv.Atoi(value); err != nil || n < 68 || n > 65535 {
				return invalid("invalid value %q for %s", value, key)
			}
		case optionICC, optionMasquerade:
			if on, err := strconv.ParseBool(value); err != nil || !on {
				return unsupported("the network option %s=%s", key, value)
			}
		default:
			return unsupported("the network option %s", key)
		}
	}
	return refuse([]named{
		{"EnableIPv4=false", req.EnableIPv4 != nil && !*req.EnableIPv4},
		{"an ingress network", req.Ingress},
		{"ConfigOnly", req.ConfigOnly},
		{"ConfigFrom", req.ConfigFrom != nil && req.ConfigFrom.Network != ""},
	})
}

// reservedInterface says whether a bridge of that name could be another
// interface of the guest.
func reservedInterface(name string) bool {
	for _, prefix := range []string{"lo", "eth", "en", "veth", "br-", "docker0", "tun", "tap", "sit", "ip6"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "." || name == ".." || name == "all" || name == "default"
}

// bridge is the name of a network's interface in the guest.
func (n *networkRecord) bridge() string {
	if name := n.Options[optionName]; name != "" {
		return name
	}
	return "br-" + n.ID[:12]
}

// proto describes the network to the guest.
func (n *networkState) proto() *proto.Network {
	p := &proto.Network{Id: n.ID, Name: n.Name, Bridge: n.bridge(), Internal: n.Internal, Resolve: n.userDefined()}
	for _, c := range n.IPAM.Config {
		p.Gateways = append(p.Gateways, cidr(c.Gateway, c.Subnet))
	}
	if mtu, err := strconv.ParseUint(n.Options[optionMTU], 10, 16); err == nil {
		p.Mtu = uint32(mtu)
	}
	return p
}

// NetworkRemove deletes a network that no running container is in. It never
// boots the machine.
func (e *Engine) NetworkRemove(ctx context.Context, name string) error {
	e.netMu.Lock()
	n, err := e.networkLocked(name)
	switch {
	case err != nil:
	case n.builtin():
		err = errForbidden("%s is a pre-defined network and cannot be removed", n.Name)
	case len(n.ends) > 0:
		err = e.activeEndpoints(n)
	default:
		if err = removeFile(e.networkPath(n.ID), true); err == nil {
			delete(e.networks, n.ID)
		}
	}
	e.netMu.Unlock()
	if err != nil {
		return err
	}
	if g := e.machine.Running(); g != nil {
		// It has no bearing on anything else any more.
		if _, err := g.RemoveNetwork(ctx, &proto.NetworkRequest{Id: n.ID}); err != nil {
			e.log.Warn("remove network in the guest", "network", n.Name, "error", message(err))
		}
	}
	e.emitNetwork(&n.networkRecord, events.ActionDestroy, nil)
	return nil
}

// activeEndpoints says who keeps a network; the caller holds netMu.
func (e *Engine) activeEndpoints(n *networkState) error {
	var who []string
	for id, ep := range n.ends {
		who = append(who, fmt.Sprintf("name:%q id:%q", ep.owner, id[:12]))
	}
	slices.Sort(who)
	return errForbidden("error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(who, ", "))
}

// NetworkPrune removes the networks that no container is in, running or not:
// filters label, label!, until.
func (e *Engine) NetworkPrune(ctx context.Context, f Filters) (apinet.PruneReport, error) {
	report := apinet.PruneReport{NetworksDeleted: []string{}}
	if err := f.allow("label", "label!", "until"); err != nil {
		return report, err
	}
	until, err := f.until()
	if err != nil {
		return report, err
	}
	used := map[string]bool{}
	for _, c := range e.all() {
		for _, a := range c.view().rec.Networks {
			used[a.ID] = true
		}
	}
	e.netMu.Lock()
	var list []*networkState
	for _, n := range e.networks {
		if !n.builtin() && !used[n.ID] && len(n.ends) == 0 && f.labels("label", n.Labels) && f.noLabels("label!", n.Labels) &&
			(until.IsZero() || n.Created.Before(until)) {
			list = append(list, n)
		}
	}
	e.netMu.Unlock()
	slices.SortFunc(list, func(a, b *networkState) int { return strings.Compare(a.Name, b.Name) })
	for _, n := range list {
		if err := e.NetworkRemove(ctx, n.ID); err == nil {
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		}
	}
	e.emit(events.NetworkEventType, events.ActionPrune, "", map[string]string{"reclaimed": "0"})
	return report, nil
}

func (e *Engine) emitNetwork(n *networkRecord, a events.Action, extra map[string]string) {
	attrs := map[string]string{"name": n.Name, "type": n.Driver}
	maps.Copy(attrs, extra)
	e.emit(events.NetworkEventType, a, n.ID, attrs)
}
