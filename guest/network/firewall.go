package network

import (
	"net"
	"os"

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
func replace(c *nftables.Conn, table *nftables.Table, chains []chain) error {
	c.AddTable(table) // so that deleting it can't fail
	c.DelTable(table)
	c.AddTable(table)
	for _, ch := range chains {
		ch.spec.Table = table
		made := c.AddChain(&ch.spec)
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: made, Exprs: r})
		}
	}
	return c.Flush()
}

// replaceTable makes the guest's table "sampan":
//
//	table inet sampan {
//		chain forward {
//			type filter hook forward priority filter; policy drop;
//			iifname INTERNAL drop          # for each internal bridge
//			oifname INTERNAL drop
//			ct state established,related accept
//			oifname UPLINK accept
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			oifname UPLINK masquerade
//		}
//	}
//
// It holds no container, and of the networks only the internal ones: within a
// bridge packets aren't forwarded, between bridges they are dropped, and
// outwards all leave the same way. Without an uplink nothing is forwarded.
func replaceTable(uplink string, internal []string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	return replace(c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "sampan"}, guestChains(uplink, internal))
}

func guestChains(uplink string, internal []string) []chain {
	drop := nftables.ChainPolicyDrop
	forward := chain{spec: nftables.Chain{
		Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}}
	if uplink == "" {
		return []chain{forward}
	}
	for _, name := range internal {
		forward.rules = append(forward.rules,
			append(onInterface(expr.MetaKeyIIFNAME, name), &expr.Verdict{Kind: expr.VerdictDrop}),
			append(onInterface(expr.MetaKeyOIFNAME, name), &expr.Verdict{Kind: expr.VerdictDrop}))
	}
	forward.rules = append(forward.rules,
		append(stateIn(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), &expr.Verdict{Kind: expr.VerdictAccept}),
		append(onInterface(expr.MetaKeyOIFNAME, uplink), &expr.Verdict{Kind: expr.VerdictAccept}))
	postrouting := chain{spec: nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}, rules: []rule{append(onInterface(expr.MetaKeyOIFNAME, uplink), &expr.Masq{})}}
	return []chain{forward, postrouting}
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
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, // destination
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ip},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // port
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
		&expr.Immediate{Register: 1, Data: ip},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
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

// stateIn matches packets of connections in one of the states.
func stateIn(mask uint32) rule {
	return rule{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
