package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	apinet "github.com/moby/moby/api/types/network"

	"sampan/host/network"
)

// networkError is why a container got no network; Docker words it so.
type networkError struct{ err error }

func (e *networkError) Error() string {
	return "failed to set up container networking: " + e.err.Error()
}
func (e *networkError) Unwrap() error { return e.err }

// publishPorts publishes a run's ports.
func (e *Engine) publishPorts(rec *record, r *run) error {
	r.bound = apinet.PortMap{}
	proxy, err := proxied(rec.Config.Labels)
	if err != nil {
		return err
	}
	for _, port := range sortedPorts(rec.Config.ExposedPorts) {
		bindings := rec.HostConfig.PortBindings[port]
		if len(bindings) == 0 && rec.HostConfig.PublishAllPorts && port.Proto() != apinet.SCTP {
			bindings = []apinet.PortBinding{{}}
		}
		r.bound[port] = nil // exposed, but not published
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
	r.ports = append(r.ports, p)
	for _, a := range p.Addrs() {
		r.bound[port] = append(r.bound[port], apinet.PortBinding{HostIP: a.Addr(), HostPort: strconv.Itoa(int(a.Port()))})
	}
	return nil
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
