//go:build !linux

package network

import (
	"net"
	"net/netip"
)

// hostRoutes are the networks that the host's interfaces are on; what lies
// behind a router isn't seen.
func hostRoutes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			list = append(list, p)
		}
	}
	return list, nil
}
