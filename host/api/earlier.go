package api

import (
	"net/netip"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// earlierInspect is a container before API 1.52: its network settings had fields
// of the endpoint in the default network, by which scripts find an address.
type earlierInspect struct {
	container.InspectResponse
	NetworkSettings earlierSettings
}

type earlierSettings struct {
	*container.NetworkSettings
	defaultEndpoint
}

// defaultEndpoint has the fields' names and zero values of API 1.51's
// NetworkSettings.
type defaultEndpoint struct {
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

func defaultEndpointOf(s *container.NetworkSettings) defaultEndpoint {
	ep := s.Networks[network.NetworkBridge]
	if ep == nil {
		return defaultEndpoint{}
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	return defaultEndpoint{
		EndpointID: ep.EndpointID, MacAddress: ep.MacAddress.String(),
		Gateway: text(ep.Gateway), IPAddress: text(ep.IPAddress), IPPrefixLen: ep.IPPrefixLen,
		IPv6Gateway: text(ep.IPv6Gateway), GlobalIPv6Address: text(ep.GlobalIPv6Address), GlobalIPv6PrefixLen: ep.GlobalIPv6PrefixLen,
	}
}
