package engine

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	apinet "github.com/moby/moby/api/types/network"
)

func prefixes(t *testing.T, list ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// conf reads "SUBNET [GATEWAY [RANGE]]".
func conf(s string) apinet.IPAMConfig {
	f := strings.Fields(s)
	c := apinet.IPAMConfig{Subnet: netip.MustParsePrefix(f[0])}
	if len(f) > 1 && f[1] != "-" {
		c.Gateway = netip.MustParseAddr(f[1])
	}
	if len(f) > 2 {
		c.IPRange = netip.MustParsePrefix(f[2])
	}
	return c
}

func TestPlanIPAM(t *testing.T) {
	const id = "0123"
	pools := defaultPools()
	own := privateV6(id).String()
	for _, c := range []struct {
		name            string
		v6              bool
		asked           []string
		networks, hosts []string
		want            string // "SUBNET GATEWAY" of each, or a part of the error
	}{
		{name: "the first pool", want: "172.17.0.0/16 172.17.0.1"},
		{name: "out of others' way", networks: []string{"172.17.0.0/16"}, hosts: []string{"172.18.4.0/24", "172.19.0.0/15"}, want: "172.20.0.0/16 172.20.0.1"},
		{name: "the host has all of 172.16/12", hosts: []string{"172.16.0.0/12"}, want: "192.168.0.0/20 192.168.0.1"},
		{name: "the uplink's part", hosts: []string{"172.16.0.0/12", "192.168.0.0/18", "192.168.64.0/19", "192.168.96.0/20", "192.168.127.0/24"}, want: "192.168.128.0/20 192.168.128.1"},
		{name: "nothing left", hosts: []string{"0.0.0.0/1", "128.0.0.0/1"}, want: "all predefined address pools have been fully subnetted"},
		{name: "asked for", asked: []string{"10.1.0.0/24"}, hosts: []string{"10.0.0.0/8"}, want: "10.1.0.0/24 10.1.0.1"},
		{name: "with a gateway", asked: []string{"10.1.0.0/24 10.1.0.254"}, want: "10.1.0.0/24 10.1.0.254"},
		{name: "with a range", asked: []string{"10.1.0.0/16 - 10.1.5.0/24"}, want: "10.1.0.0/16 10.1.5.0"},
		{name: "both families", v6: true, asked: []string{"10.1.0.0/24", "fd00:1::/64"}, want: "10.1.0.0/24 10.1.0.1 fd00:1::/64 fd00:1::1"},
		{name: "IPv6 of its own", v6: true, want: "172.17.0.0/16 172.17.0.1 " + own + " " + privateV6(id).Addr().Next().String()},
		{name: "IPv6 that is off", asked: []string{"fd00:1::/64"}, want: "172.17.0.0/16 172.17.0.1"},
		{name: "another network's", asked: []string{"10.1.0.0/24"}, networks: []string{"10.0.0.0/8"}, want: "Pool overlaps with other one"},
		{name: "the uplink's", asked: []string{"192.168.0.0/16"}, networks: []string{"192.168.127.0/24"}, want: "Pool overlaps with other one"},
		{name: "two of a family", asked: []string{"10.1.0.0/24", "10.2.0.0/24"}, want: "doesn't support multiple subnets"},
		{name: "bits behind the mask", asked: []string{"10.1.0.7/24"}, want: "it should be 10.1.0.0/24"},
		{name: "too small", asked: []string{"10.1.0.0/31"}, want: "too small"},
		{name: "gateway elsewhere", asked: []string{"10.1.0.0/24 10.2.0.1"}, want: "invalid gateway 10.2.0.1"},
		{name: "gateway is the broadcast address", asked: []string{"10.1.0.0/24 10.1.0.255"}, want: "invalid gateway"},
		{name: "range elsewhere", asked: []string{"10.1.0.0/24 - 10.2.0.0/25"}, want: "invalid ip-range"},
	} {
		var asked []apinet.IPAMConfig
		for _, s := range c.asked {
			asked = append(asked, conf(s))
		}
		plan, err := planIPAM(id, c.v6, asked, pools, prefixes(t, c.networks...), prefixes(t, c.hosts...))
		var got []string
		for _, p := range plan {
			got = append(got, fmt.Sprint(p.Subnet, " ", p.Gateway))
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != c.want && (err == nil || !strings.Contains(text, c.want)) {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
	}
}

// Addresses are given from the range, the lowest first, and nobody else's.
func TestFirstFree(t *testing.T) {
	c := conf("10.1.0.0/24 10.1.0.129 10.1.0.128/30")
	c.AuxAddress = map[string]netip.Addr{"router": netip.MustParseAddr("10.1.0.130")}
	used := map[netip.Addr]bool{}
	var got []string
	for range 3 {
		a := firstFree(&c, func(a netip.Addr) bool { return used[a] })
		used[a] = true
		got = append(got, a.String())
	}
	if want := "10.1.0.128 10.1.0.131 invalid IP"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c = conf("10.1.0.0/30 10.1.0.1")
	if a := firstFree(&c, func(netip.Addr) bool { return false }); a.String() != "10.1.0.2" {
		t.Errorf("got %s", a)
	}
	if a := firstFree(&c, func(a netip.Addr) bool { return a.String() == "10.1.0.2" }); a.IsValid() {
		t.Errorf("the broadcast address %s was given", a)
	}
}

// A pool's subnets are handed out one after the other, to its end.
func TestPools(t *testing.T) {
	pools := []Pool{{netip.MustParsePrefix("10.9.0.0/23"), 24}, {netip.MustParsePrefix("255.255.255.0/24"), 25}}
	var taken []netip.Prefix
	for _, want := range []string{"10.9.0.0/24", "10.9.1.0/24", "255.255.255.0/25", "255.255.255.128/25"} {
		got, err := freePool(pools, taken)
		if err != nil || got.String() != want {
			t.Fatalf("%s, %v, want %s", got, err, want)
		}
		taken = append(taken, got)
	}
	if got, err := freePool(pools, taken); err == nil {
		t.Errorf("of nothing: %s", got)
	}
	for _, p := range []Pool{
		{}, {Size: 24}, {netip.MustParsePrefix("10.0.0.1/8"), 24}, {netip.MustParsePrefix("10.0.0.0/24"), 16},
		{netip.MustParsePrefix("10.0.0.0/24"), 31}, {netip.MustParsePrefix("fd00::/16"), 24},
	} {
		if p.Validate() == nil {
			t.Errorf("%v is taken", p)
		}
	}
}
