package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// displayPorts is the PORTS column, as Docker shows it: first runs of ports
// that have the same number on the host or are not published, then the others
// one by one: "0.0.0.0:80-81->80-81/tcp, 9000/tcp, 127.0.0.1:8080->80/tcp".
func displayPorts(ports []container.PortSummary) string {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b container.PortSummary) int {
		return cmp.Or(
			cmp.Compare(a.PrivatePort, b.PrivatePort),
			cmp.Compare(address(a.IP), address(b.IP)),
			cmp.Compare(a.PublicPort, b.PublicPort),
			cmp.Compare(a.Type, b.Type),
		)
	})
	type place struct{ ip, proto string }
	open := map[place]int{} // the run of a place that may go on, in runs
	var (
		runs   []portRun
		others []string
	)
	for _, p := range ports {
		ip := address(p.IP)
		if ip != "" && p.PublicPort != p.PrivatePort {
			others = append(others, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(ip, fmt.Sprint(p.PublicPort)), p.PrivatePort, p.Type))
			continue
		}
		where := place{ip, p.Type}
		if i, ok := open[where]; ok && runs[i].last+1 == p.PrivatePort {
			runs[i].last++
			continue
		}
		open[where] = len(runs)
		runs = append(runs, portRun{ip: ip, proto: p.Type, first: p.PrivatePort, last: p.PrivatePort})
	}
	var out []string
	for _, r := range runs {
		out = append(out, r.String())
	}
	return strings.Join(append(out, others...), ", ")
}

// portRun is a range of ports, the same on the host and in the container; an
// empty ip: not published.
type portRun struct {
	ip, proto   string
	first, last uint16
}

func (r portRun) String() string {
	span := fmt.Sprint(r.first)
	if r.last != r.first {
		span += fmt.Sprintf("-%d", r.last)
	}
	if r.ip == "" {
		return span + "/" + r.proto
	}
	return net.JoinHostPort(r.ip, span) + "->" + span + "/" + r.proto
}

func address(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}
