package network

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// replaceTable makes the table "sampan" in one transaction:
//
//	table ip sampan {
//		chain forward {
//			type filter hook forward priority filter; policy drop;
//			ct state established,related accept
//			oifname UPLINK accept
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			oifname UPLINK masquerade
//		}
//	}
//
// It holds no container and no network: within a bridge packets aren't
// forwarded, between bridges they are dropped, and outwards all leave the
// same way. Without an uplink nothing is forwarded.
func replaceTable(uplink string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "sampan"}
	c.AddTable(table) // so that deleting it can't fail
	c.DelTable(table)
	c.AddTable(table)
	drop := nftables.ChainPolicyDrop
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	if uplink == "" {
		return c.Flush()
	}
	postrouting := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	rules := []struct {
		chain *nftables.Chain
		exprs []expr.Any
	}{
		{forward, append(stateIn(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), &expr.Verdict{Kind: expr.VerdictAccept})},
		{forward, append(leavesBy(uplink), &expr.Verdict{Kind: expr.VerdictAccept})},
		{postrouting, append(leavesBy(uplink), &expr.Masq{})},
	}
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: table, Chain: r.chain, Exprs: r.exprs})
	}
	return c.Flush()
}

// leavesBy matches packets that leave by an interface.
func leavesBy(name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

// stateIn matches packets of connections in one of the states.
func stateIn(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
