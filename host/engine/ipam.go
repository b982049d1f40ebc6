package engine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// The default bridge, as Docker has it.
const (
	bridgeName   = "docker0"
	bridgePrefix = 16
)

var (
	bridgeSubnet  = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 17, 0, 0}), bridgePrefix)
	bridgeGateway = netip.AddrFrom4([4]byte{172, 17, 0, 1})
)

// ipam gives the running containers addresses on the bridge, the lowest that is
// free.
type ipam struct {
	mu   sync.Mutex
	used map[netip.Addr]bool
}

func newIPAM() *ipam { return &ipam{used: map[netip.Addr]bool{}} }

func (p *ipam) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := bridgeGateway.Next(); bridgeSubnet.Contains(a.Next()); a = a.Next() { // not the broadcast address
		if !p.used[a] {
			p.used[a] = true
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("no available IPv4 addresses on this network's address pools: bridge")
}

func (p *ipam) release(a netip.Addr) {
	p.mu.Lock()
	delete(p.used, a)
	p.mu.Unlock()
}

// macOf derives a hardware address from an IPv4 one, as Docker did for years.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

func cidr(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, bridgePrefix) }
