package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// The real docker client makes networks, and containers find each other in them
// and nowhere else. The script network.txtar does more of it, with sampan.
func TestDockerNetworks(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	docker := func(args ...string) string { t.Helper(); return h.must(t, "docker", args...) }

	docker("network", "create", "--ipv6", "one")
	docker("network", "create", "two")
	// Two that share an alias take turns.
	for _, name := range []string{"aa", "bb"} {
		docker("run", "-d", "--name", name, "--network", "one", "--network-alias", "svc", "busybox", "sleep", "1000")
	}
	docker("run", "-d", "--name", "other", "--network", "two", "busybox", "sleep", "1000")
	first := map[string]bool{}
	for range 4 {
		answer := docker("exec", "aa", "nslookup", "-type=a", "svc")
		_, addrs, _ := strings.Cut(answer, "Name:")
		if n := strings.Count(addrs, "Address: "); n != 2 {
			t.Fatalf("%d addresses, want 2:\n%s", n, answer)
		}
		_, addr, _ := strings.Cut(addrs, "Address: ")
		first[strings.Fields(addr)[0]] = true
	}
	if len(first) != 2 {
		t.Errorf("always the same is first: %v", first)
	}
	if out := docker("exec", "aa", "ping", "-6", "-c", "1", "-W", "10", "bb"); !strings.Contains(out, "1 packets received") {
		t.Errorf("ping: %s", out)
	}
	if r := h.try(t, "", "docker", "exec", "other", "ping", "-c", "1", "-W", "1", "aa"); r.code == 0 || !strings.Contains(r.stderr, "bad address") {
		t.Errorf("a name of another network: %+v", r)
	}
	ip := strings.TrimSpace(docker("inspect", "-f", "{{.NetworkSettings.Networks.one.IPAddress}}", "aa"))
	if r := h.try(t, "", "docker", "exec", "other", "ping", "-c", "1", "-W", "1", ip); r.code != 1 {
		t.Errorf("an address of another network: %+v", r)
	}
	// A new name counts at once; so does a network.
	docker("rename", "aa", "renamed")
	docker("network", "connect", "one", "other")
	docker("exec", "other", "ping", "-c", "1", "-W", "10", "renamed")
	if r := h.try(t, "", "docker", "exec", "other", "ping", "-c", "1", "-W", "10", "aa"); r.code == 0 {
		t.Errorf("the old name: %+v", r)
	}
	if out := docker("network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "one"); len(strings.Fields(out)) != 3 {
		t.Errorf("in the network: %s", out)
	}
	docker("network", "disconnect", "one", "other")
	if r := h.try(t, "", "docker", "exec", "other", "ping", "-c", "1", "-W", "1", ip); r.code != 1 {
		t.Errorf("after it has left the network: %+v", r)
	}
	// Port 53 is the container's: a server of its own has it.
	docker("exec", "bb", "sh", "-c", `nc -l -p 53 </dev/null >/dev/null &
for i in $(seq 50); do nc -w 5 127.0.0.1 53 </dev/null && exec nslookup -type=a renamed >/dev/null; sleep 0.1; done; exit 1`)
	// A name server of one's own is asked for all other names.
	docker("run", "-d", "--name", "ns", "--network", "one", "-v", filepath.Join(files.bin, "peer")+":/peer:ro", "busybox", "/peer", "dns", "0.0.0.0:53")
	server := strings.TrimSpace(docker("inspect", "-f", "{{.NetworkSettings.Networks.one.IPAddress}}", "ns"))
	if out := docker("run", "--rm", "--network", "one", "--dns", server, "busybox", "nslookup", "-type=a", "www.example.com"); !strings.Contains(out, "Address: 192.0.2.7") {
		t.Errorf("--dns: %s", out)
	}
	docker("rm", "-f", "renamed", "bb", "other", "ns")
	docker("network", "rm", "one", "two")
}
