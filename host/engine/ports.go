package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apinet "github.com/moby/moby/api/types/network"

	"sampan/host/network"
	"sampan/proto"
)

// networkError is why a container got no network; Docker words it so.
type networkError struct{ err error }

func (e *networkError) Error() string {
	return "failed to set up container networking: " + e.err.Error()
}
func (e *networkError) Unwrap() error { return e.err }

// publishPorts publishes a run's ports, all or none.
func (e *Engine) publishPorts(rec *record, r *run) (err error) {
	proxy, err := proxied(rec.Config.Labels)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.closePorts()
		}
	}()
	r.netMu.Lock()
	r.bound = apinet.PortMap{}
	r.netMu.Unlock()
	for _, port := range sortedPorts(rec.Config.ExposedPorts) {
		bindings := rec.HostConfig.PortBindings[port]
		if len(bindings) == 0 && rec.HostConfig.PublishAllPorts && port.Proto() != apinet.SCTP {
			bindings = []apinet.PortBinding{{}}
		}
		r.netMu.Lock()
		if !r.left {
			r.bound[port] = nil // exposed, but not published
		}
		r.netMu.Unlock()
		for _, b := range bindings {
			if err := e.publish(rec, r, port, b, proxy[port]); err != nil {
				return &networkError{fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", rec.Name, rec.ID, err)}
			}
		}
	}
	return nil
}

// proxyLabel names the ports of a container whose connections begin with a
// PROXY protocol header: "80/tcp,443".
const proxyLabel = "sampan.proxy-protocol"

// proxied reads the label.
func proxied(labels map[string]string) (map[apinet.Port]bool, error) {
	ports := map[apinet.Port]bool{}
	for name := range strings.SplitSeq(labels[proxyLabel], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		p, err := apinet.ParsePort(name)
		if err != nil {
			return nil, invalid("label %s: %q is not a port", proxyLabel, name)
		}
		if p.Proto() != apinet.TCP {
			return nil, unsupported("label %s for the port %s", proxyLabel, p)
		}
		ports[p] = true
	}
	return ports, nil
}

// publish listens for one binding; of a range, on the first port that is free.
func (e *Engine) publish(rec *record, r *run, port apinet.Port, b apinet.PortBinding, proxy bool) error {
	want, err := hostPorts(b.HostPort)
	if err != nil {
		return err
	}
	spec := network.Spec{
		Proto: string(port.Proto()), HostIP: b.HostIP, Owner: rec.ID, ProxyProtocol: proxy,
		Dial: func(ctx context.Context) (net.Conn, error) {
			return r.guest.Dial(ctx, string(port.Proto()), r.target(port))
		},
	}
	var p *network.Port
	for n := want[0]; n <= want[1]; n++ {
		spec.HostPort = uint16(n)
		if p, err = e.ports.Publish(spec); !errors.Is(err, network.ErrInUse) {
			break
		}
	}
	if held, ok := errors.AsType[*network.InUseError](err); ok && held.Owner != "" {
		held.Owner = e.describe(held.Owner)
	}
	if err != nil {
		return err
	}
	if !r.addPort(port, p, proxy) {
		p.Close()
	}
	return nil
}

// addPort notes a port that is published, unless the run has ended meanwhile.
func (r *run) addPort(port apinet.Port, p *network.Port, proxy bool) bool {
	r.netMu.Lock()
	defer r.netMu.Unlock()
	if r.left {
		return false
	}
	r.ports = append(r.ports, p)
	for _, a := range p.Addrs() {
		r.bound[port] = append(r.bound[port], apinet.PortBinding{HostIP: a.Addr(), HostPort: strconv.Itoa(int(a.Port()))})
		// In the guest nobody makes the header of the PROXY protocol.
		if a.Addr() == netip.IPv4Unspecified() && !proxy {
			r.published = append(r.published, &proto.Published{
				Proto: string(port.Proto()), HostPort: uint32(a.Port()), ContainerPort: uint32(port.Num()),
			})
		}
	}
	return true
}

// portMap is what is published of a run at present.
func (r *run) portMap() apinet.PortMap {
	r.netMu.Lock()
	defer r.netMu.Unlock()
	return maps.Clone(r.bound)
}

// everywhere are the ports that are published on every address.
func (r *run) everywhere() []*proto.Published {
	r.netMu.Lock()
	defer r.netMu.Unlock()
	return slices.Clone(r.published)
}

// closePorts ends what is published, with its connections.
func (r *run) closePorts() {
	r.netMu.Lock()
	ports := r.ports
	r.ports, r.bound, r.published = nil, nil, nil
	r.netMu.Unlock()
	closeAll(ports)
}

// describe names the owner of a port.
func (e *Engine) describe(id string) string {
	if id == mirrorOwner {
		return "a container in the host's network"
	}
	c, err := e.find(id)
	if err != nil {
		return "a container that is being removed"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return "container " + c.rec.Name
}

func sortedPorts(set apinet.PortSet) []apinet.Port {
	ports := make([]apinet.Port, 0, len(set))
	for p := range set {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b apinet.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return strings.Compare(string(a.Proto()), string(b.Proto()))
	})
	return ports
}
