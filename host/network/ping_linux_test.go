package network

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// pingEnv marks the process that TestPing starts in a network of its own.
const pingEnv = "SAMPAN_TEST_PING"

// A ping goes where it is meant to go, and nobody answers in the place of who
// doesn't. The test has a network namespace of its own with a black hole in it.
func TestPing(t *testing.T) {
	if os.Getenv(pingEnv) != "" {
		testPing(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Log("not root: no network namespace, no black hole")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPing$", "-test.v")
	cmd.Env = append(os.Environ(), pingEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func testPing(t *testing.T) {
	allow := func(groups string) {
		t.Helper()
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	allow("0 2147483647")
	up := func(l netlink.Link, addr string) {
		t.Helper()
		if addr != "" {
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				t.Fatal(err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	up(lo, "")
	hole := netlink.NewVeth(netlink.LinkAttrs{Name: "hole"})
	hole.PeerName = "void"
	if err := netlink.LinkAdd(hole); err != nil {
		t.Fatal(err)
	}
	void, err := netlink.LinkByName("void")
	if err != nil {
		t.Fatal(err)
	}
	up(void, "")
	up(hole, "198.51.100.1/24")
	// Nobody is there, and nobody says so.
	if err := netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: hole.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(198, 51, 100, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}); err != nil {
		t.Fatal(err)
	}

	n := newNetwork(t)
	c := attach(t, n)
	// Of these the first is never answered. An answer of our own making would
	// have come before the others.
	c.ping(netip.MustParseAddr("198.51.100.2"), 1)
	c.ping(n.HostLoopback(), 2)
	if from, h := c.icmp(); from != n.HostLoopback() || h.Type() != header.ICMPv4EchoReply || h.Sequence() != 2 || h.Ident() != 4711 || len(h) != 64 {
		t.Errorf("from %s: %x", from, []byte(h))
	}
	c.ping(netip.MustParseAddr("198.51.100.1"), 3)
	if from, h := c.icmp(); from.String() != "198.51.100.1" || h.Type() != header.ICMPv4EchoReply || h.Sequence() != 3 {
		t.Errorf("from %s: %x", from, []byte(h))
	}
	c.ping(n.Gateway(), 4)
	if from, h := c.icmp(); from != n.Gateway() || h.Type() != header.ICMPv4EchoReply || h.Sequence() != 4 {
		t.Errorf("from %s: %x", from, []byte(h))
	}
	// No route leads there.
	c.ping(netip.MustParseAddr("203.0.113.1"), 5)
	if from, h := c.icmp(); from != n.Gateway() || h.Type() != header.ICMPv4DstUnreachable || h.Code() != header.ICMPv4NetUnreachable ||
		header.ICMPv4(h[8+header.IPv4MinimumSize:]).Sequence() != 5 {
		t.Errorf("from %s: %x", from, []byte(h))
	}
	if w := n.Warnings(); w != nil {
		t.Errorf("warnings %q", w)
	}
	// The host allows nobody. What was open goes on: another sequence it is.
	allow("1 0")
	c.ident++
	c.ping(netip.MustParseAddr("198.51.100.1"), 6)
	if from, h := c.icmp(); from != n.Gateway() || h.Type() != header.ICMPv4DstUnreachable || h.Code() != header.ICMPv4AdminProhibited {
		t.Errorf("from %s: %x", from, []byte(h))
	}
	if w := n.Warnings(); len(w) != 1 || !strings.Contains(w[0], "ping_group_range") {
		t.Errorf("warnings %q", w)
	}
}
