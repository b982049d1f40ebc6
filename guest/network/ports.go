package network

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"sampan/proto"
)

// A port that is published on the host's every address is there on the bridges'
// gateways as well, and for who is in the guest's own network on its loopback: as
// on a Linux host with Docker, where all these are the host's. What comes there is
// led to the container by the table, and seems to come from its gateway.

// portKey is a published port as others see it.
type portKey struct {
	proto string
	port  uint16
}

// Publish says anew which of a container's ports are published.
func (n *Network) Publish(id string, ports []*proto.Published) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil {
		return fmt.Errorf("container %s has no network", id)
	}
	b.published = ports
	return n.firewallLocked("")
}

// publishedLocked are all containers' ports that can be reached.
func (n *Network) publishedLocked() map[portKey]netip.AddrPort {
	ports := map[portKey]netip.AddrPort{}
	for _, id := range slices.Sorted(maps.Keys(n.boxes)) {
		b := n.boxes[id]
		to := b.reached()
		if !to.IsValid() {
			continue
		}
		for _, p := range b.published {
			key := portKey{p.Proto, uint16(p.HostPort)}
			if _, taken := ports[key]; !taken {
				ports[key] = netip.AddrPortFrom(to, uint16(p.ContainerPort))
			}
		}
	}
	return ports
}

// reached is a container's IPv4 address in the network that it gets out by; the
// host dials that, too. The caller holds Network.mu.
func (b *box) reached() netip.Addr {
	for _, e := range b.ends {
		if e.net.spec.Internal {
			continue
		}
		for _, a := range e.addrs {
			if a.Is4() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// routeLoopback lets answers come in by a bridge to who has asked from the
// guest's loopback; the table's first chain keeps everything else out.
func routeLoopback(bridge string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", bridge, "route_localnet"), []byte("1"), 0)
}
