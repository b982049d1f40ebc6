package api

import (
	"net"
	"net/http"
	"net/netip"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
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

// createRequest is what a container is made from, with a field that clients have
// sent until API 1.44 (and docker's own still does): the hardware address in its
// first network.
type createRequest struct {
	container.CreateRequest
	MacAddress string
}

// complete moves that address to where it belongs since.
func (r *createRequest) complete() (container.CreateRequest, error) {
	req := r.CreateRequest
	if r.MacAddress == "" {
		return req, nil
	}
	mac, err := net.ParseMAC(r.MacAddress)
	if err != nil {
		return req, invalid("invalid MAC address: %s", r.MacAddress)
	}
	mode := container.NetworkMode("")
	if req.HostConfig != nil {
		mode = req.HostConfig.NetworkMode
	}
	if mode.IsHost() || mode.IsContainer() {
		return req, invalid("conflicting options: mac-address and the network mode")
	}
	first := string(mode)
	if mode == "" || mode.IsDefault() {
		first = network.NetworkBridge
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	eps := req.NetworkingConfig.EndpointsConfig
	if eps == nil {
		eps = map[string]*network.EndpointSettings{}
		req.NetworkingConfig.EndpointsConfig = eps
	}
	if _, ok := eps[network.NetworkDefault]; ok && first == network.NetworkBridge {
		first = network.NetworkDefault
	}
	ep := eps[first]
	if ep == nil {
		ep = &network.EndpointSettings{}
		eps[first] = ep
	}
	if len(ep.MacAddress) > 0 && ep.MacAddress.String() != mac.String() {
		return req, invalid("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	}
	ep.MacAddress = network.HardwareAddr(mac)
	return req, nil
}

// earlierEvent is an event as it was before API 1.52: of containers and images it
// told some things twice.
func earlierEvent(r *http.Request, m events.Message) any {
	if !less(clientVersion(r), "1.52") || m.Type != events.ContainerEventType && m.Type != events.ImageEventType {
		return m
	}
	e := struct {
		Status events.Action `json:"status"`
		ID     string        `json:"id"`
		From   string        `json:"from,omitempty"`
		events.Message
	}{m.Action, m.Actor.ID, "", m}
	if m.Type == events.ContainerEventType {
		e.From = m.Actor.Attributes["image"]
	}
	return e
}
