package network

import (
	"fmt"
	"net/netip"
)

// subnets are what the guest's uplink is chosen from: the first that the host
// itself has no route to.
var subnets = []netip.Prefix{
	netip.MustParsePrefix("192.168.127.0/24"),
	netip.MustParsePrefix("192.168.227.0/24"),
	netip.MustParsePrefix("172.31.127.0/24"),
	netip.MustParsePrefix("10.227.127.0/24"),
	netip.MustParsePrefix("198.18.127.0/24"), // of benchmarks (RFC 2544): nobody's at home
}

// chooseSubnet returns the one that is asked for, or the first without a route.
func chooseSubnet(want netip.Prefix) (netip.Prefix, error) {
	if !want.IsValid() {
		routes, err := hostRoutes()
		if err != nil {
			return want, fmt.Errorf("read the host's routes: %w", err)
		}
		return firstFree(subnets, routes), nil
	}
	if !want.Addr().Is4() || want.Bits() != 24 {
		return want, fmt.Errorf("subnet %s: want an IPv4 /24", want)
	}
	return want.Masked(), nil
}

// firstFree returns the first subnet that no route leads to; when there is
// none, the first.
func firstFree(list, routes []netip.Prefix) netip.Prefix {
next:
	for _, s := range list {
		for _, r := range routes {
			if r.Bits() > 0 && r.Overlaps(s) {
				continue next
			}
		}
		return s
	}
	return list[0]
}
