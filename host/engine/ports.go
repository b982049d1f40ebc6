package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apinet "github.com/moby/moby/api/types/network"

	"sampan/host/network"
)

// publishPorts publishes a run's ports.
func (e *Engine) publishPorts(rec *record, r *run) error {
	r.bound = apinet.PortMap{}
	for _, port := range sortedPorts(rec.Config.ExposedPorts) {
		bindings := rec.HostConfig.PortBindings[port]
		if len(bindings) == 0 && rec.HostConfig.PublishAllPorts && port.Proto() == apinet.TCP {
			bindings = []apinet.PortBinding{{}}
		}
		r.bound[port] = nil // exposed, but not published
		for _, b := range bindings {
			if err := e.publish(rec, r, port, b); err != nil {
				return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", rec.Name, rec.ID, err)
			}
		}
	}
	return nil
}

// publish listens for one binding; of a range, on the first port that is free.
func (e *Engine) publish(rec *record, r *run, port apinet.Port, b apinet.PortBinding) error {
	want, err := hostPorts(b.HostPort)
	if err != nil {
		return err
	}
	spec := network.Spec{Proto: "tcp", Log: e.log, Dial: func(ctx context.Context) (net.Conn, error) {
		return r.guest.Dial(ctx, "tcp", r.target(port))
	}}
	// The unspecified IPv4 address is Docker's word for "any".
	if b.HostIP.IsValid() && b.HostIP != netip.IPv4Unspecified() {
		spec.HostIP = b.HostIP.String()
	} else if b.HostIP.IsValid() {
		spec.HostIP = "0.0.0.0"
	}
	var p *network.Port
	for n := want[0]; n <= want[1]; n++ {
		spec.HostPort = n
		if p, err = network.Publish(spec); !errors.Is(err, network.ErrInUse) {
			break
		}
	}
	if err != nil {
		return err
	}
	r.ports = append(r.ports, p)
	number := strconv.Itoa(p.Addr().Port)
	if spec.HostIP != "" {
		r.bound[port] = append(r.bound[port], apinet.PortBinding{HostIP: b.HostIP, HostPort: number})
		return nil
	}
	r.bound[port] = append(r.bound[port],
		apinet.PortBinding{HostIP: netip.IPv4Unspecified(), HostPort: number},
		apinet.PortBinding{HostIP: netip.IPv6Unspecified(), HostPort: number})
	return nil
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
