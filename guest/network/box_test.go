package network

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"sampan/proto"
)

// boxEnv marks the process that TestConnect starts in a network of its own.
const boxEnv = "SAMPAN_TEST_BOX"

// A container that can't be connected is left without the interface, and one
// that can't be disconnected is not taken for it.
func TestConnect(t *testing.T) {
	if os.Getenv(boxEnv) != "" {
		testConnect(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Log("not root: no network namespace")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestConnect$", "-test.v")
	cmd.Env = append(os.Environ(), boxEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func testConnect(t *testing.T) {
	container := exec.Command("cat") // until its input ends
	container.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := container.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	defer container.Wait()
	defer in.Close()
	n, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Leave("one")
	veths := func() int {
		t.Helper()
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, l := range links {
			if l.Type() == "veth" {
				count++
			}
		}
		return count
	}
	endpoint := func(id, address string) *proto.Endpoint {
		return &proto.Endpoint{
			Name: "eth0", Mac: "02:42:0a:00:00:02", Addresses: []string{address},
			Network: &proto.Network{Id: id, Name: id, Bridge: "test-" + id, Gateways: []string{"10.0.0.1/24"}, Mtu: 1500},
		}
	}
	pid := container.Process.Pid
	if _, err := n.Connect("one", pid, endpoint("a", "10.9.9.2/24"), nil); err == nil {
		t.Error("a gateway that can't be reached is taken")
	}
	if len(n.Addresses("one", "a")) != 0 || veths() != 0 {
		t.Errorf("after a failure: %v, %d interfaces", n.Addresses("one", "a"), veths())
	}
	if _, err := n.Connect("one", pid, endpoint("a", "10.0.0.2/24"), nil); err != nil {
		t.Fatal(err)
	}
	e := n.nets["a"].ends["one"]
	// Published ports lead to it, while it is in a network that they can.
	n.replace = func(*policy) error { return nil }
	if err := n.Allow(); err != nil {
		t.Fatal(err)
	}
	if err := n.Publish("one", []*proto.Published{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}); err != nil {
		t.Fatal(err)
	}
	leads := func() string { return fmt.Sprint(n.table.gateways, n.table.ports) }
	if got, want := leads(), "[10.0.0.1] map[{tcp 8080}:10.0.0.2:80]"; got != want {
		t.Errorf("published: %s, want %s", got, want)
	}
	if err := n.Publish("two", nil); err == nil {
		t.Error("ports of a container that isn't there are published")
	}
	index := e.veth
	e.veth = loopback // which can't be deleted
	for range 2 {
		if err := n.Disconnect("one", "a"); err == nil {
			t.Error("an interface that is still there is told to be gone")
		}
	}
	e.veth = index
	if err := n.Disconnect("one", "a"); err != nil || veths() != 0 || len(n.Addresses("one", "a")) != 0 {
		t.Errorf("disconnect: %v, %d interfaces", err, veths())
	}
	if got, want := leads(), "[] map[]"; got != want {
		t.Errorf("published after the disconnect: %s, want %s", got, want)
	}
	inner := endpoint("b", "10.0.0.3/24")
	inner.Network.Internal = true
	for e, want := range map[*proto.Endpoint]string{
		inner:                        "[] map[]",
		endpoint("a", "10.0.0.2/24"): "[10.0.0.1] map[{tcp 8080}:10.0.0.2:80]",
	} {
		if _, err := n.Connect("one", pid, e, nil); err != nil {
			t.Fatal(err)
		}
		if got := leads(); got != want {
			t.Errorf("published after the next connect: %s, want %s", got, want)
		}
		if err := n.Disconnect("one", e.Network.Id); err != nil {
			t.Fatal(err)
		}
	}
}
