package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// netFiles are the files that a container gets beside its image's, by path,
// with its endpoints and links.
func (e *Engine) netFiles(rec *record, ends []*endpoint, links []linked) (map[string][]byte, error) {
	hosts, err := hostsFile(rec, ends, links, e.cfg.HostGateway)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"/etc/hostname":    []byte(rec.Config.Hostname + "\n"),
		"/etc/hosts":       hosts,
		"/etc/resolv.conf": resolvConf(rec, e.cfg.DNS, resolves(ends)),
	}, nil
}

func hostsFile(rec *record, ends []*endpoint, links []linked, gateway netip.Addr) ([]byte, error) {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, extra := range rec.HostConfig.ExtraHosts {
		name, addr, err := parseExtraHost(extra, gateway)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	for i := range links {
		fmt.Fprintln(&b, links[i].hosts())
	}
	for _, ep := range ends {
		for _, line := range hostsLines(rec, ep) {
			fmt.Fprintln(&b, line)
		}
	}
	return []byte(b.String()), nil
}

// hostsLines are what a container's hosts file says of its own endpoint.
func hostsLines(rec *record, ep *endpoint) []string {
	name := rec.Config.Hostname
	if rec.Config.Domainname != "" {
		name += "." + rec.Config.Domainname + " " + rec.Config.Hostname
	}
	var lines []string
	for _, a := range ep.addrs {
		lines = append(lines, fmt.Sprintf("%s\t%s", a.Addr(), name))
	}
	return lines
}

// embeddedDNS is where containers find each other's names.
var embeddedDNS = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// resolvConf names the servers of names: embedded is for networks that resolve
// names themselves, which ask the others when they have to.
func resolvConf(rec *record, dns []netip.Addr, embedded bool) []byte {
	h := rec.HostConfig
	options := h.DNSOptions
	var b strings.Builder
	switch {
	case embedded:
		dns = []netip.Addr{embeddedDNS}
		if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			options = append(slices.Clone(options), "ndots:0")
		}
	case len(h.DNS) > 0:
		dns = h.DNS
	}
	for _, a := range dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if search := slices.DeleteFunc(slices.Clone(h.DNSSearch), func(s string) bool { return s == "." }); len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return []byte(b.String())
}
