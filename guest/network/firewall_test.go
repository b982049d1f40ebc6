package network

import (
	"net/netip"
	"testing"
)

// TestPolicyEqual: whatever the table is made from makes a difference.
func TestPolicyEqual(t *testing.T) {
	with := func(change func(*policy)) *policy {
		p := &policy{
			uplink: "eth0", internal: []string{"br1"}, gateways: []netip.Addr{netip.MustParseAddr("172.17.0.1")},
			ports: map[portKey]netip.AddrPort{{proto: "tcp", port: 80}: netip.MustParseAddrPort("172.17.0.2:80")},
		}
		change(p)
		return p
	}
	same := with(func(*policy) {})
	if !same.equal(with(func(*policy) {})) {
		t.Error("the same policies differ")
	}
	for name, change := range map[string]func(*policy){
		"uplink":   func(p *policy) { p.uplink = "" },
		"internal": func(p *policy) { p.internal = nil },
		"gateways": func(p *policy) { p.gateways = append(p.gateways, netip.MustParseAddr("172.18.0.1")) },
		"port":     func(p *policy) { p.ports[portKey{proto: "udp", port: 80}] = netip.MustParseAddrPort("172.17.0.2:80") },
		"target": func(p *policy) {
			p.ports[portKey{proto: "tcp", port: 80}] = netip.MustParseAddrPort("172.17.0.3:80")
		},
	} {
		if other := with(change); same.equal(other) || other.equal(same) {
			t.Errorf("another %s makes no difference", name)
		}
	}
}
