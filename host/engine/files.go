package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// netFiles are the files that a container gets beside its image's, by path.
// ip is invalid where the container has no address of its own.
func netFiles(rec *record, ip netip.Addr, dns []netip.Addr, gateway netip.Addr) (map[string][]byte, error) {
	hosts, err := hostsFile(rec, ip, gateway)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"/etc/hostname":    []byte(rec.Config.Hostname + "\n"),
		"/etc/hosts":       hosts,
		"/etc/resolv.conf": resolvConf(rec, dns),
	}, nil
}

func hostsFile(rec *record, ip, gateway netip.Addr) ([]byte, error) {
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
	name := rec.Config.Hostname
	if rec.Config.Domainname != "" {
		name += "." + rec.Config.Domainname + " " + rec.Config.Hostname
	}
	if ip.IsValid() {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return []byte(b.String()), nil
}

func resolvConf(rec *record, dns []netip.Addr) []byte {
	h := rec.HostConfig
	var b strings.Builder
	if len(h.DNS) > 0 {
		dns = h.DNS
	}
	for _, a := range dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if search := slices.DeleteFunc(slices.Clone(h.DNSSearch), func(s string) bool { return s == "." }); len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(h.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(h.DNSOptions, " "))
	}
	return []byte(b.String())
}
