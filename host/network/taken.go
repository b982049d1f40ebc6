package network

import "net/netip"

// Subnet is the one between host and guest.
func (n *Network) Subnet() netip.Prefix { return n.subnet }

// HostRoutes are the subnets that the host reaches by more than its default
// route: its own networks, and those of VPNs. Where the system does not tell,
// there are none.
func (n *Network) HostRoutes() []netip.Prefix {
	routes, err := hostRoutes()
	if err != nil {
		n.log.Warn("the host's routes can't be read", "error", err)
		return nil
	}
	var list []netip.Prefix
	for _, r := range routes {
		if r.Bits() > 0 {
			list = append(list, r)
		}
	}
	return list
}
