package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
)

// builtin are the networks that always exist; their IDs are the same in every
// home.
var builtin = []struct{ name, driver string }{
	{apinet.NetworkBridge, "bridge"}, {apinet.NetworkHost, "host"}, {apinet.NetworkNone, "null"},
}

// networkIDs by name.
var networkIDs = map[string]string{
	apinet.NetworkBridge: hashID("network", apinet.NetworkBridge),
	apinet.NetworkHost:   hashID("network", apinet.NetworkHost),
	apinet.NetworkNone:   hashID("network", apinet.NetworkNone),
}

func hashID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// endpointID names a container's end of a network.
func endpointID(container, network string) string { return hashID("endpoint", container, network) }

func onBridge(m container.NetworkMode) bool { return !m.IsHost() && !m.IsNone() }

// join gives a run its address.
func (e *Engine) join(rec *record, r *run) error {
	ip, err := e.ipam.take()
	if err != nil {
		return err
	}
	r.ip, r.mac = ip, apinet.HardwareAddr(macOf(ip))
	if rec.Endpoint != nil && len(rec.Endpoint.MacAddress) > 0 {
		r.mac = rec.Endpoint.MacAddress
	}
	return nil
}

// target is where the guest finds a port of the container.
func (r *run) target(port apinet.Port) string {
	return netip.AddrPortFrom(r.ip, port.Num()).String()
}

// NetworkList returns the networks that match.
func (e *Engine) NetworkList(f Filters) ([]apinet.Summary, error) {
	if err := f.allow("driver", "id", "label", "name", "scope", "type", "dangling"); err != nil {
		return nil, err
	}
	list := []apinet.Summary{}
	for _, b := range builtin {
		n := builtinNetwork(b.name, b.driver)
		if f.equal("driver", n.Driver) && f.prefix("id", n.ID) && f.contains("name", n.Name) &&
			f.equal("scope", n.Scope) && f.equal("type", "builtin") && f.labels("label", nil) {
			list = append(list, apinet.Summary{Network: n})
		}
	}
	return list, nil
}

// NetworkInspect describes a network, by its name or the beginning of its ID.
func (e *Engine) NetworkInspect(name string) (apinet.Inspect, error) {
	for _, b := range builtin {
		n := builtinNetwork(b.name, b.driver)
		if name != n.Name && (name == "" || !strings.HasPrefix(n.ID, name)) {
			continue
		}
		in := apinet.Inspect{Network: n, Containers: map[string]apinet.EndpointResource{}}
		for _, c := range e.all() {
			v := c.view()
			if networkOf(&v.rec) == n.Name && v.ip.IsValid() {
				in.Containers[v.rec.ID] = apinet.EndpointResource{
					Name: v.rec.Name, EndpointID: endpointID(v.rec.ID, n.Name), MacAddress: v.mac,
					IPv4Address: netip.PrefixFrom(v.ip, bridgePrefix),
				}
			}
		}
		return in, nil
	}
	return apinet.Inspect{}, notFound("network %s not found", name)
}

func builtinNetwork(name, driver string) apinet.Network {
	n := apinet.Network{
		Name: name, ID: networkIDs[name], Scope: "local", Driver: driver, EnableIPv4: true,
		IPAM: apinet.IPAM{Driver: "default", Config: []apinet.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}
	if name == apinet.NetworkBridge {
		n.IPAM.Config = append(n.IPAM.Config, apinet.IPAMConfig{Subnet: bridgeSubnet, Gateway: bridgeGateway})
		n.Options["com.docker.network.bridge.default_bridge"] = "true"
		n.Options["com.docker.network.bridge.name"] = bridgeName
	}
	return n
}
