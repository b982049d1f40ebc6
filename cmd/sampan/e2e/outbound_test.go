package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// outside makes the network that the daemon of TestOutbound lives in: a black
// hole, a name server that answers for everybody, and a table of hosts.
const outside = `set -e
ip link set lo up
ip link add hole type veth peer name void
ip link set void up
ip link set hole up
ip addr add 198.51.100.1/24 dev hole
ip route add 172.17.0.0/16 via 198.51.100.2
ip route add 172.18.64.0/18 via 198.51.100.2 table 7
ip neigh add 198.51.100.2 lladdr 02:00:00:00:00:01 dev hole nud permanent
echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range
printf 'nameserver 127.0.0.53\n' > "$DIR/resolv.conf"
printf '127.0.0.1 localhost\n10.9.8.7 only.here\n' > "$DIR/hosts"
mount --bind "$DIR/resolv.conf" /etc/resolv.conf
mount --bind "$DIR/hosts" /etc/hosts
peer dns > "$DIR/peer.log" 2>&1 &
echo $! > "$DIR/peer.pid"
exec sampan load -q -i "$BUSYBOX"
`

// Names are as on the host, and a ping reaches who answers it and nobody else.
func TestOutbound(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no network namespace, no black hole; the first run has both")
		return
	}
	h := newHome(t)
	dir := t.TempDir()
	h.env = append(h.env, "DIR="+dir, "BUSYBOX="+files.busybox)
	h.must(t, "unshare", "--net", "--mount", "sh", "-c", outside)
	pid, err := os.ReadFile(filepath.Join(dir, "peer.pid"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(atoi(t, strings.TrimSpace(string(pid))), syscall.SIGTERM) })

	// Networks keep out of the way of the host's routes, whatever their table.
	h.sampan(t, "network", "create", "own")
	subnets := h.sampan(t, "network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}}{{end}}", "bridge", "own")
	if subnets != "172.19.0.0/16\n172.20.0.0/16\n" {
		t.Errorf("subnets beside the host's routes: %q", subnets)
	}

	h.sampan(t, "run", "-d", "--name", "box", "--add-host", "both:2001:db8::7", "--add-host", "both:host-gateway", "-v", filepath.Join(files.bin, "peer")+":/peer:ro", "busybox", "sleep", "1000")
	for _, c := range []struct {
		cmd  string
		want string // "": must fail
	}{
		{"nslookup -type=a www.example.com", "Address: 192.0.2.7"},
		{"nslookup only.here", "Address: 10.9.8.7"},
		{"nslookup -type=ptr 7.8.9.10.in-addr.arpa", "name = only.here"},
		{"nslookup host.docker.internal", "Address: 192.168.127.254"},
		{"nslookup gateway.docker.internal", "Address: 192.168.127.1"},
		{"answer=$(nslookup -type=aaaa www.example.com) && ! echo \"$answer\" | grep 2001:db8 && echo none", "none"},
		{"/peer txt www.example.com", strconv.Itoa(20 * 250)}, // over TCP
		{"echo hello | nc host.docker.internal 7000", "hello"},
		{"ping -c 1 -W 5 host.docker.internal", "1 packets received"},
		{"ping -c 1 -W 5 198.51.100.1", "1 packets received"},
		{"ping -c 1 -W 1 198.51.100.2", ""}, // the black hole
		{"ping -c 1 -W 5 203.0.113.1", ""},  // no route
		{"nc -w 5 203.0.113.1 80", ""},
		// Nothing leaves by IPv6, which is told at once: who has an address of each
		// family tries the other.
		{"timeout 9 nc -w 8 2001:db8::7 80 2>&1 | grep unreachable", "Network is unreachable"},
		{"timeout 9 /peer ask both:7000", "hello"},
	} {
		r := h.try(t, "", "sampan", "exec", "box", "sh", "-c", c.cmd)
		if c.want == "" && r.code == 0 || c.want != "" && (r.code != 0 || !strings.Contains(r.stdout, c.want)) {
			t.Errorf("%s: want %q, got %+v", c.cmd, c.want, r)
		}
	}
	// Who may not ping is told so, and why.
	h.must(t, "nsenter", "--net=/proc/"+strings.TrimSpace(string(pid))+"/ns/net", "sh", "-c", "echo 1 0 > /proc/sys/net/ipv4/ping_group_range")
	if r := h.try(t, "", "sampan", "exec", "box", "ping", "-c", "1", "-W", "1", "198.51.100.3"); r.code == 0 {
		t.Errorf("a ping that isn't allowed: %+v", r)
	}
	if out := h.sampan(t, "machine", "status"); !strings.Contains(out, "containers can't ping: ") || !strings.Contains(out, "net.ipv4.ping_group_range") {
		t.Errorf("machine status: %s", out)
	}
	if log, err := os.ReadFile(filepath.Join(h.dir, "sampand.log")); err != nil || !strings.Contains(string(log), "pings of containers can't be sent on") {
		t.Errorf("the log does not tell of pings: %v", err)
	}
	// What changes on the host changes for containers.
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("10.9.8.6 only.here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the table of hosts is read again", func() bool {
		return strings.Contains(h.try(t, "", "sampan", "exec", "box", "nslookup", "only.here").stdout, "10.9.8.6")
	})
}
