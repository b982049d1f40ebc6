package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	apinet "github.com/moby/moby/api/types/network"
)

// The default bridge, as Docker has it.
const bridgeName = "docker0"

// Pool is a range of IPv4 addresses from which networks that ask for no subnet
// get one of Size bits.
type Pool struct {
	Base netip.Prefix
	Size int
}

// Validate refuses a pool that has no subnets.
func (p Pool) Validate() error {
	switch {
	case !p.Base.IsValid() || !p.Base.Addr().Is4() || p.Base != p.Base.Masked():
		return fmt.Errorf("base is %s: want an IPv4 subnet", p.Base)
	case p.Size < p.Base.Bits() || p.Size > 30:
		return fmt.Errorf("size is %d: want %d to 30", p.Size, p.Base.Bits())
	}
	return nil
}

// first is the lowest subnet of a pool.
func (p Pool) first() netip.Prefix { return netip.PrefixFrom(p.Base.Addr(), p.Size) }

// next is the subnet after another; false after the last.
func (p Pool) next(s netip.Prefix) (netip.Prefix, bool) {
	b := s.Addr().As4()
	n := uint64(binary.BigEndian.Uint32(b[:])) + 1<<(32-p.Size)
	if n > math.MaxUint32 {
		return s, false
	}
	binary.BigEndian.PutUint32(b[:], uint32(n))
	s = netip.PrefixFrom(netip.AddrFrom4(b), p.Size)
	return s, p.Base.Contains(s.Addr())
}

// defaultPools are Docker's: sixteen bits of 172.17 to 172.31, then twenty of
// 192.168.
func defaultPools() []Pool {
	var list []Pool
	for i := 17; i <= 31; i++ {
		list = append(list, Pool{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i), 0, 0}), 16), 16})
	}
	return append(list, Pool{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, 0}), 16), 20})
}

// freePool is the first subnet of the pools that overlaps nothing in taken.
func freePool(pools []Pool, taken []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		for s, ok := p.first(), true; ok; s, ok = p.next(s) {
			if !overlaps(s, taken) {
				return s, nil
			}
		}
	}
	return netip.Prefix{}, invalid("all predefined address pools have been fully subnetted")
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	return slices.ContainsFunc(taken, p.Overlaps)
}

// privateV6 is a network's own IPv6 subnet (RFC 4193), made from its ID.
func privateV6(id string) netip.Prefix {
	sum := sha256.Sum256([]byte("subnet\x00" + id))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// planIPAM completes what was asked of a network's addresses: a subnet of each
// family that it has, with its gateway. pools are for who asks for none, networks are subnets that are taken, hosts
// those that only the user may choose.
func planIPAM(id string, v6 bool, asked []apinet.IPAMConfig, pools []Pool, networks, hosts []netip.Prefix) ([]apinet.IPAMConfig, error) {
	var plan []apinet.IPAMConfig
	var has4, has6 bool
	for _, c := range asked {
		if err := checkIPAM(&c); err != nil {
			return nil, err
		}
		is4 := c.Subnet.Addr().Is4()
		if is4 && has4 || !is4 && has6 {
			return nil, invalid("bridge driver doesn't support multiple subnets")
		}
		has4, has6 = has4 || is4, has6 || !is4
		if !is4 && !v6 {
			continue // Docker, too, leaves it out without a word
		}
		if overlaps(c.Subnet, networks) {
			return nil, invalid("invalid pool request: Pool overlaps with other one on this address space")
		}
		plan = append(plan, c)
	}
	if !has4 {
		p, err := freePool(pools, slices.Concat(networks, hosts))
		if err != nil {
			return nil, err
		}
		plan = append([]apinet.IPAMConfig{{Subnet: p}}, plan...)
	}
	if v6 && !has6 {
		plan = append(plan, apinet.IPAMConfig{Subnet: privateV6(id)})
	}
	for i := range plan {
		c := &plan[i]
		if !c.Gateway.IsValid() {
			c.Gateway = firstFree(c, func(netip.Addr) bool { return false })
			if !c.Gateway.IsValid() {
				return nil, invalid("no available IPv4 addresses on this network's address pools: %s", c.Subnet)
			}
		}
	}
	return plan, nil
}

// checkIPAM checks one subnet, and normalizes it.
func checkIPAM(c *apinet.IPAMConfig) error {
	if !c.Subnet.IsValid() {
		return invalid("invalid network config:\ninvalid subnet: a subnet is required with a gateway, an IP range or auxiliary addresses")
	}
	if c.Subnet != c.Subnet.Masked() {
		return invalid("invalid network config:\ninvalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
	}
	if c.Subnet.Bits() > c.Subnet.Addr().BitLen()-2 {
		return invalid("invalid network config:\ninvalid subnet %s: too small for a gateway and a container", c.Subnet)
	}
	if r := c.IPRange; r.IsValid() {
		if r != r.Masked() || r.Bits() < c.Subnet.Bits() || !c.Subnet.Contains(r.Addr()) {
			return invalid("invalid network config:\ninvalid ip-range %s: parent subnet %s doesn't contain ip-range", r, c.Subnet)
		}
	}
	if g := c.Gateway; g.IsValid() && !usable(c.Subnet, g) {
		return invalid("invalid network config:\ninvalid gateway %s: parent subnet %s doesn't contain this address", g, c.Subnet)
	}
	for name, a := range c.AuxAddress {
		if !c.Subnet.Contains(a) {
			return invalid("invalid network config:\ninvalid auxiliary address %s=%s: parent subnet %s doesn't contain this address", name, a, c.Subnet)
		}
	}
	return nil
}

// usable says whether an interface of a subnet may have an address: IPv4's last
// is broadcast, and each family's first means the subnet.
func usable(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Addr() && (!a.Is4() || p.Contains(a.Next()))
}

// firstFree is the lowest address of a subnet's range that nobody has; invalid
// when there is none.
func firstFree(c *apinet.IPAMConfig, used func(netip.Addr) bool) netip.Addr {
	from := c.Subnet
	if c.IPRange.IsValid() {
		from = c.IPRange
	}
	aux := map[netip.Addr]bool{c.Gateway: true}
	for _, a := range c.AuxAddress {
		aux[a] = true
	}
	for a := from.Addr(); from.Contains(a); a = a.Next() {
		if usable(c.Subnet, a) && !aux[a] && !used(a) {
			return a
		}
	}
	return netip.Addr{}
}

// macOf derives a hardware address from an IPv4 one, as Docker did for years.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

func cidr(a netip.Addr, p netip.Prefix) string { return fmt.Sprintf("%s/%d", a, p.Bits()) }
