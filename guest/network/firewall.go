package network

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is one of a chain's, in order.
type rule []expr.Any

// chain of a table that this package makes.
type chain struct {
	spec  nftables.Chain
	rules []rule
}

// replace makes a table in one transaction, in place of the one of that name.
func replace(c *nftables.Conn, table *nftables.Table, chains []chain, maps ...portMap) error {
	c.AddTable(table) // so that deleting it can't fail
	c.DelTable(table)
	c.AddTable(table)
	for _, m := range maps {
		if err := m.add(c, table); err != nil {
			return err
		}
	}
	for _, ch := range chains {
		ch.spec.Table = table
		made := c.AddChain(&ch.spec)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: made, Exprs: r})
		}
	}
	return c.Flush()
}

// policy is what the guest's table is made from.
type policy struct {
	uplink   string   // interface to the outside; "": nothing is forwarded
	internal []string // bridges
	// ports are published: what is sent to them on one of the gateways' addresses
	// or loopback goes to a container.
	ports    map[portKey]netip.AddrPort
	gateways []netip.Addr
}

func (p *policy) equal(o *policy) bool {
	return p.uplink == o.uplink && slices.Equal(p.internal, o.internal) && maps.Equal(p.ports, o.ports) &&
		slices.Equal(p.gateways, o.gateways)
}

// portMap is a map of the table: a port of one protocol to where it leads.
type portMap struct {
	name  string
	ports map[uint16]netip.AddrPort
}

// maxElements bounds those in one message, whose length has 16 bits.
const maxElements = 500

func (m portMap) add(c *nftables.Conn, table *nftables.Table) error {
	to, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return err
	}
	set := &nftables.Set{Table: table, Name: m.name, IsMap: true, KeyType: nftables.TypeInetService, DataType: to}
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	var elements []nftables.SetElement
	for port, to := range m.ports {
		elements = append(elements, nftables.SetElement{
			Key: binaryutil.BigEndian.PutUint16(port),
			// Each part of a concatenation is padded to 4 bytes.
			Val: append(append(to.Addr().AsSlice(), binaryutil.BigEndian.PutUint16(to.Port())...), 0, 0),
		})
	}
	for part := range slices.Chunk(elements, maxElements) {
		if err := c.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// replaceTable makes the guest's table "sampan":
//
//	table inet sampan {
//		map tcp { type inet_service : ipv4_addr . inet_service; … }
//		map udp { … }
//		chain martians {
//			type filter hook prerouting priority raw;
//			iifname != lo ip daddr 127.0.0.0/8 drop
//			iifname != lo ip saddr 127.0.0.0/8 drop
//		}
//		chain prerouting {
//			type nat hook prerouting priority dstnat;
//			# for each gateway and protocol
//			ip daddr GATEWAY meta l4proto tcp dnat ip to tcp dport map @tcp
//		}
//		chain output {
//			type nat hook output priority dstnat;
//			# the same, and for 127.0.0.1
//		}
//		chain forward {
//			type filter hook forward priority filter; policy drop;
//			iifname INTERNAL drop          # for each internal bridge
//			oifname INTERNAL drop
//			ct state established,related accept
//			ct status dnat accept
//			oifname UPLINK accept
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			oifname UPLINK masquerade
//			ct status dnat masquerade
//		}
//	}
//
// Of the containers it holds published ports alone, and of the networks only the
// internal ones and their gateways: within a bridge packets aren't forwarded,
// between bridges they are dropped unless they are for a published port, and
// outwards all leave the same way. Without an uplink nothing is forwarded.
func replaceTable(p *policy) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	maps := []portMap{{"tcp", map[uint16]netip.AddrPort{}}, {"udp", map[uint16]netip.AddrPort{}}}
	for key, to := range p.ports {
		for _, m := range maps {
			if m.name == key.proto {
				m.ports[key.port] = to
			}
		}
	}
	return replace(c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "sampan"}, guestChains(p), maps...)
}

// HoldHooks makes a table that does nothing, and so has the kernel look at the
// firewall's hooks for good: it patches what sends and receives when the first
// chain of a hook comes, and again when the last one goes; see guest/boot. A chain
// of NAT has all hooks but that of forwarding.
func HoldHooks() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "hold"}
	if err := replace(c, table, []chain{
		{spec: nftables.Chain{Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}},
		{spec: nftables.Chain{Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}},
	}); err != nil {
		return fmt.Errorf("hold the firewall's hooks: %w", err)
	}
	return nil
}

func guestChains(p *policy) []chain {
	policy := nftables.ChainPolicyDrop
	forward := chain{spec: nftables.Chain{
		Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	}}
	if p.uplink == "" {
		return []chain{forward}
	}
	for _, name := range p.internal {
		forward.rules = append(forward.rules,
			append(onInterface(expr.MetaKeyIIFNAME, name), drop()),
			append(onInterface(expr.MetaKeyOIFNAME, name), drop()))
	}
	forward.rules = append(forward.rules,
		append(connection(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
		append(connection(expr.CtKeySTATUS, statusDNAT), accept()),
		append(onInterface(expr.MetaKeyOIFNAME, p.uplink), accept()))
	postrouting := chain{spec: nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}, rules: []rule{
		append(onInterface(expr.MetaKeyOIFNAME, p.uplink), &expr.Masq{}),
		append(connection(expr.CtKeySTATUS, statusDNAT), &expr.Masq{}),
	}}
	return append(publishedChains(p), forward, postrouting)
}

// publishedChains lead to published ports, and keep out what could then come to
// the guest's loopback.
func publishedChains(p *policy) []chain {
	martians := chain{spec: nftables.Chain{
		Name: "martians", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	}}
	for _, offset := range []uint32{sourceOffset, destinationOffset} {
		lo := onInterface(expr.MetaKeyIIFNAME, "lo")
		lo[1].(*expr.Cmp).Op = expr.CmpOpNeq
		martians.rules = append(martians.rules, append(slices.Concat(lo, ipv4(), rule{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127}},
		}), drop()))
	}
	if len(p.ports) == 0 {
		return []chain{martians}
	}
	prerouting := chain{spec: nftables.Chain{
		Name: "prerouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	}}
	output := chain{spec: nftables.Chain{
		Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	}}
	for _, gw := range p.gateways {
		prerouting.rules = append(prerouting.rules, publishedRule(gw, "tcp"), publishedRule(gw, "udp"))
	}
	for _, a := range append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, p.gateways...) {
		output.rules = append(output.rules, publishedRule(a, "tcp"), publishedRule(a, "udp"))
	}
	return []chain{martians, prerouting, output}
}

// publishedRule leads what is sent to an address by the map of the protocol.
func publishedRule(at netip.Addr, proto string) rule {
	number := byte(unix.IPPROTO_TCP)
	if proto == "udp" {
		number = unix.IPPROTO_UDP
	}
	// A lookup stores the parts of what it finds in registers of 4 bytes, of
	// which the first of 16 bytes has four.
	const second = unix.NFT_REG32_00 + 1
	return slices.Concat(ipv4(), to(at.AsSlice(), number), rule{
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: proto},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: second},
	})
}

// statusDNAT marks connections that were led elsewhere (IPS_DST_NAT).
const statusDNAT = 1 << 5

// Where an IPv4 header has its addresses.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func drop() expr.Any   { return &expr.Verdict{Kind: expr.VerdictDrop} }
func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// ipv4 matches that.
func ipv4() rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

// to matches IPv4 packets to an address, by their protocol, and leaves their port
// in register 1.
func to(address []byte, proto byte) rule {
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destinationOffset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// redirect makes the table "sampan" of a container's namespace, which leads
// what is sent to resolverIP, port 53, to the ports that are served:
//
//	table ip sampan {
//		chain output {
//			type nat hook output priority dstnat;
//			ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:UDP
//			ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:TCP
//		}
//	}
func redirect(ns *os.File, udp, tcp int) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	output := chain{spec: nftables.Chain{
		Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	}}
	for _, to := range []struct {
		proto byte
		port  int
	}{{unix.IPPROTO_UDP, udp}, {unix.IPPROTO_TCP, tcp}} {
		output.rules = append(output.rules, nameRule(to.proto, uint16(to.port)))
	}
	return replace(c, &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "sampan"}, []chain{output})
}

func nameRule(proto byte, port uint16) rule {
	ip := net.ParseIP(resolverIP).To4()
	return append(to(ip, proto),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
		&expr.Immediate{Register: 1, Data: ip},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	)
}

// onInterface matches packets that come or leave by an interface.
func onInterface(key expr.MetaKey, name string) rule {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return rule{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

// connection matches packets of connections of which one of the bits is set.
func connection(key expr.CtKey, mask uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
