package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// networkFlags are the options of `run` and `create` that say which networks
// the container is in.
type networkFlags struct {
	networks       networksValue
	aliases, links []string
	ip, ip6, mac   string
}

func (f *networkFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.ip, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	fs.StringVar(&f.ip6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	checkedVar(fs, &f.links, "link", "", "Add link to another container", checkLink)
	fs.StringVar(&f.mac, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	fs.Var(&f.networks, "network", "Connect a container to a network")
	listVar(fs, &f.aliases, "network-alias", "", "Add network-scoped alias for the container")
	fs.Var(&f.networks, "net", "Connect a container to a network")
	listVar(fs, &f.aliases, "net-alias", "", "Add network-scoped alias for the container")
	for _, old := range []string{"net", "net-alias"} {
		fs.Lookup(old).Hidden = true
	}
}

// checkLink reads NAME[:ALIAS].
func checkLink(s string) error {
	if s == "" {
		return errors.New("empty string specified for links")
	}
	if strings.Count(s, ":") > 1 {
		return fmt.Errorf("bad format for links: %s", s)
	}
	return nil
}

// attachment is one --network.
type attachment struct {
	name     string
	endpoint network.EndpointSettings
}

// networksValue is a list of "NETWORK" or "name=NETWORK,alias=…,ip=…,…".
type networksValue struct{ list []attachment }

func (v *networksValue) String() string { return "" }
func (v *networksValue) Type() string   { return "network" }

// Set reads one. Only what has a "name=" is a list of options.
func (v *networksValue) Set(s string) error {
	if !strings.Contains(s, "=") {
		v.list = append(v.list, attachment{name: s})
		return nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	var a attachment
	ep := &a.endpoint
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		if !ok || value == "" {
			return fmt.Errorf("invalid field %s", field)
		}
		switch key {
		case "name":
			a.name = value
		case "alias":
			ep.Aliases = append(ep.Aliases, value)
		case "driver-opt":
			k, val, ok := strings.Cut(value, "=")
			if !ok || k == "" {
				return errors.New("invalid key value pair format in driver options")
			}
			if ep.DriverOpts == nil {
				ep.DriverOpts = map[string]string{}
			}
			ep.DriverOpts[k] = val
		case "ip", "ip6":
			err = setAddress(ep, key, value)
		case "mac-address":
			err = setMAC(ep, value)
		case "link-local-ip":
			var ip netip.Addr
			if ip, err = netip.ParseAddr(value); err == nil {
				ipam(ep).LinkLocalIPs = append(ipam(ep).LinkLocalIPs, ip)
			}
		case "gw-priority":
			if ep.GwPriority, err = strconv.Atoi(value); err != nil {
				err = fmt.Errorf("invalid gw-priority (%s): value must be an integer", value)
			}
		default:
			return fmt.Errorf("invalid field key %s", key)
		}
		if err != nil {
			return err
		}
	}
	if a.name == "" {
		return errors.New("network name/id is not specified")
	}
	v.list = append(v.list, a)
	return nil
}

func ipam(ep *network.EndpointSettings) *network.EndpointIPAMConfig {
	if ep.IPAMConfig == nil {
		ep.IPAMConfig = &network.EndpointIPAMConfig{}
	}
	return ep.IPAMConfig
}

// setAddress reads an address that the container is to have: "ip" or "ip6".
func setAddress(ep *network.EndpointSettings, family, value string) error {
	ip, err := netip.ParseAddr(value)
	switch {
	case family == "ip":
		if err != nil || !ip.Is4() {
			return fmt.Errorf("invalid IPv4 address: %s", value)
		}
		ipam(ep).IPv4Address = ip
	case err != nil || !ip.Is6():
		return fmt.Errorf("invalid IPv6 address: %s", value)
	default:
		ipam(ep).IPv6Address = ip
	}
	return nil
}

func setMAC(ep *network.EndpointSettings, value string) error {
	mac, err := net.ParseMAC(value)
	if err != nil {
		return fmt.Errorf("%s is not a valid mac address", value)
	}
	ep.MacAddress = network.HardwareAddr(mac)
	return nil
}

// apply puts the networks into a request. Options beside --network are those of
// the first one.
func (f *networkFlags) apply(req *client.ContainerCreateOptions) error {
	list := f.networks.list
	if len(list) == 0 {
		list = []attachment{{name: network.NetworkDefault}}
	}
	first := &list[0].endpoint
	if len(f.aliases) > 0 && len(first.Aliases) > 0 {
		return errors.New("conflicting options: cannot specify both --network-alias and per-network alias")
	}
	first.Aliases = append(first.Aliases, f.aliases...)
	if f.ip != "" && first.IPAMConfig != nil && first.IPAMConfig.IPv4Address.IsValid() {
		return errors.New("conflicting options: cannot specify both --ip and per-network IPv4 address")
	}
	if f.ip6 != "" && first.IPAMConfig != nil && first.IPAMConfig.IPv6Address.IsValid() {
		return errors.New("conflicting options: cannot specify both --ip6 and per-network IPv6 address")
	}
	if f.mac != "" && len(first.MacAddress) > 0 {
		return errors.New("conflicting options: cannot specify both --mac-address and per-network MAC address")
	}
	for _, x := range []struct {
		value string
		set   func() error
	}{
		{f.ip, func() error { return setAddress(first, "ip", f.ip) }},
		{f.ip6, func() error { return setAddress(first, "ip6", f.ip6) }},
		{f.mac, func() error { return setMAC(first, f.mac) }},
	} {
		if x.value != "" {
			if err := x.set(); err != nil {
				return err
			}
		}
	}
	mode := container.NetworkMode(list[0].name)
	if len(f.links) > 0 {
		if mode.IsUserDefined() {
			first.Links = f.links
		} else {
			req.HostConfig.Links = f.links
		}
	}
	req.HostConfig.NetworkMode = mode
	endpoints := map[string]*network.EndpointSettings{}
	custom := false
	for i := range list {
		a := &list[i]
		if _, ok := endpoints[a.name]; ok {
			return fmt.Errorf("conflicting options: cannot attach %q more than once", a.name)
		}
		endpoints[a.name] = &a.endpoint
		custom = custom || container.NetworkMode(a.name).IsUserDefined()
	}
	if custom && len(list) > 1 {
		for _, a := range list {
			if m := container.NetworkMode(a.name); m.IsHost() || m.IsNone() || m.IsContainer() {
				return errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
			}
		}
	}
	if mode.IsContainer() { // it has no place of its own in a network
		if len(list) > 1 || asks(first) {
			return fmt.Errorf("conflicting options: addresses, names and other networks, and the network mode %s", mode)
		}
		return nil
	}
	if len(list) == 1 && mode.IsDefault() && !asks(first) {
		return nil
	}
	req.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: endpoints}
	return nil
}

// asks says whether anything is asked of a network but to be in it.
func asks(ep *network.EndpointSettings) bool {
	return len(ep.Aliases) > 0 || ep.IPAMConfig != nil || len(ep.MacAddress) > 0 || len(ep.DriverOpts) > 0 || len(ep.Links) > 0 || ep.GwPriority != 0
}
