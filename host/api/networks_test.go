package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// said is what the guest was told of networks.
func (d *daemon) said() string {
	g := d.machine.running()
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.networks
	g.networks = nil
	return strings.Join(list, "\n")
}

// The real client makes networks, joins and leaves them; the guest is told.
func TestNetworks(t *testing.T) {
	d := start(t)
	front := d.ok("network", "create", "--subnet", "10.1.0.0/24", "--label", "a=b", "front")
	d.ok("network", "create", "--internal", "back")
	d.refused("network with name front already exists", "network", "create", "front")
	if out := d.ok("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"); out != "back bridge local\nbridge bridge local\nfront bridge local\nhost host local\nnone null local" {
		t.Errorf("ls: %s", out)
	}
	for filter, want := range map[string]string{
		"label=a=b": "front", "type=builtin": "bridge host none", "name=ac": "back", "id=" + front[:8]: "front", "dangling=true": "back front", "driver=null": "none",
	} {
		out := strings.Join(strings.Fields(d.ok("network", "ls", "-f", filter, "--format", "{{.Name}}")), " ")
		if out != want {
			t.Errorf("ls -f %s: %q, want %q", filter, out, want)
		}
	}
	if out := d.ok("network", "inspect", "-f", "{{.Name}} {{.Internal}} {{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}}", front[:10]); out != "front false 10.1.0.0/24 10.1.0.1" {
		t.Errorf("inspect: %s", out)
	}

	events := d.events(time.Now(), "container start", func() {
		d.ok("run", "-d", "--name", "web", "--network", "name=front,alias=site,ip=10.1.0.9", "--network", "back", "--link", "db:store", "img", "sleep")
	})
	if want := []string{"container create", "network connect", "network connect", "container start"}; !slices.Equal(events, want) {
		t.Errorf("events %q", events)
	}
	id := d.ok("inspect", "-f", "{{.Id}}", "web")
	if got, want := d.said(), fmt.Sprintf(
		"start front eth0 [10.1.0.9/24] [web site %[1]s] map[store:db]\nstart back eth1 [172.18.0.2/16] [web %[1]s] map[]", id[:12]); got != want {
		t.Errorf("the guest was told\n%s\nwant\n%s", got, want)
	}
	if out := d.ok("inspect", "-f", "{{with .NetworkSettings.Networks.front}}{{.IPAddress}} {{.Gateway}} {{.Aliases}}{{end}} {{with .NetworkSettings.Networks.back}}{{.IPAddress}} {{.Gateway}}{{end}}", "web"); out != "10.1.0.9 10.1.0.1 [site] 172.18.0.2" {
		t.Errorf("inspect: %s", out)
	}
	events = d.events(time.Now(), "network destroy", func() {
		d.ok("network", "create", "brief")
		d.ok("network", "connect", "brief", "web")
		d.refused("network brief has active endpoints", "network", "rm", "brief")
		d.ok("network", "disconnect", "brief", "web")
		d.ok("network", "rm", "brief")
	})
	if want := []string{"network create", "network connect", "network disconnect", "network destroy"}; !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
	d.said()
	d.refused("Address already in use", "run", "--rm", "--network", "front", "--ip", "10.1.0.9", "img")
	d.refused("network front has active endpoints (name:\"web\"", "network", "rm", "front")
	d.refused("endpoint with name web already exists in network front", "network", "connect", "front", "web")
	d.refused("user specified IP address is supported only when connecting to networks with user configured subnets", "network", "connect", "--ip", "172.18.0.9", "back", "web")
	d.refused("container cannot be disconnected from host network or connected to host network", "network", "connect", "host", "web")
	d.refused("container web is not connected to the network bridge", "network", "disconnect", "bridge", "web")

	d.ok("network", "connect", "bridge", "web")
	d.ok("network", "disconnect", "back", "web")
	d.ok("rename", "web", "site2")
	if got, want := d.said(), fmt.Sprintf("connect bridge eth2 [172.17.0.2/16] [] map[]\ndisconnect back\nconnect front eth0 [10.1.0.9/24] [site2 site %s] map[store:db]", id[:12]); got != want {
		t.Errorf("the guest was told\n%s\nwant\n%s", got, want)
	}
	if out := d.ok("ps", "-q", "--no-trunc", "-f", "network=front"); out != id {
		t.Errorf("ps -f network: %s", out)
	}

	// What was asked for outlives the container's and the daemon's end.
	d.ok("kill", "site2")
	d.ok("network", "disconnect", "bridge", "site2")
	d.ok("network", "connect", "--alias", "late", "back", "site2")
	d.stop()
	d.serve()
	d.ok("start", "site2")
	if got, want := d.said(), fmt.Sprintf("start front eth0 [10.1.0.9/24] [site2 site %[1]s] map[store:db]\nstart back eth1 [172.18.0.2/16] [site2 late %[1]s] map[]", id[:12]); got != want {
		t.Errorf("after a restart the guest was told\n%s\nwant\n%s", got, want)
	}
	d.ok("kill", "site2")
	d.ok("network", "rm", "front")
	if got := d.said(); got != "remove front" {
		t.Errorf("the guest was told %q", got)
	}
	d.refused("network "+front+" not found", "start", "site2")
	d.ok("rm", "site2")
	if out := d.ok("network", "prune", "-f"); !strings.Contains(out, "back") {
		t.Errorf("prune: %s", out)
	}
	if out := d.ok("network", "ls", "-q", "-f", "type=custom"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// The real client links containers of the default network, to which the guest
// tells new addresses.
func TestLinks(t *testing.T) {
	d := start(t)
	d.refused("could not get container for nosuch: No such container: nosuch", "create", "--link", "nosuch:x", "img")
	d.ok("run", "-d", "--name", "away", "--network", "none", "img", "sleep")
	d.ok("create", "--name", "db", "img", "sleep")
	d.ok("create", "--name", "web", "--link", "db:store", "--link", "away:store", "--link", "db", "img", "sleep")
	d.refused("Cannot link to a non running container: /db AS /web/store", "start", "web")
	d.ok("start", "db")
	d.ok("start", "web")
	d.said()
	if out := d.ok("inspect", "-f", "{{json .HostConfig.Links}}", "web"); out != `["/db:/web/db","/db:/web/store"]` {
		t.Errorf("inspect: %s", out)
	}
	if out := d.ok("ps", "--no-trunc", "--format", "{{.Names}}", "-f", "name=db"); out != "db,web/db,web/store" {
		t.Errorf("ps: %s", out)
	}
	// A link is a name of its other end.
	for _, name := range []string{"web/store", "/web/db"} {
		if out := d.ok("inspect", "-f", "{{.Name}}", name); out != "/db" {
			t.Errorf("inspect %s: %s", name, out)
		}
	}
	d.refused("No such container: web/nosuch", "exec", "web/nosuch", "true")
	d.refused("is already in use by container", "rename", "db", "web")
	d.refused("No such container: nosuch/store", "stop", "nosuch/store")
	// What inspect shows makes the same link.
	d.ok("create", "--name", "again", "--link", "/db:/web/store", "img", "sleep")
	d.ok("rename", "db", "base")
	if out := d.ok("inspect", "-f", "{{.HostConfig.Links}}", "again"); out != "[/base:/again/store]" {
		t.Errorf("inspect: %s", out)
	}
	d.ok("kill", "base")
	d.ok("run", "-d", "--name", "first", "img", "sleep") // takes the address
	d.ok("start", "base")
	if got, want := d.said(), "relink store 172.17.0.4\nrelink db 172.17.0.4"; got != want {
		t.Errorf("the guest was told %q, want %q", got, want)
	}
	d.ok("rm", "--link", "web/db")
	d.refused("No such container: web/db", "rm", "--link", "web/db")
	d.refused("cannot remove the default link name of the container", "rm", "--link", "web")
	if got := d.said(); got != "relink db " {
		t.Errorf("the guest was told %q", got)
	}
	// A link leads to a container, not to its name, and outlives the daemon.
	d.ok("kill", "web")
	d.ok("rm", "-f", "base")
	d.ok("run", "-d", "--name", "base", "img", "sleep")
	d.stop()
	d.serve()
	d.refused("Cannot link to a non running container: /db AS /web/store", "start", "web")
	d.ok("start", "away")
	d.refused("Cannot link to /away, as it does not belong to the default network", "run", "--link", "away", "img")
	if _, warning, code := d.docker(nil, "create", "--network", "host", "-p", "80:80", "img"); code != 0 || !strings.Contains(warning, "WARNING: Published ports are discarded when using host network mode") {
		t.Errorf("ports in the host's network: %d %s", code, warning)
	}
	d.refused("host type networking can't be used with links", "run", "--network", "host", "--link", "away", "img")
	d.ok("create", "--name", "holder", "--link", "base:held", "img", "sleep")
	d.ok("rm", "-f", "holder/held") // the other end, not the link
	d.refused("No such container: base", "stop", "base")
}

// Compose sends all networks with the creation.
func TestCreateInNetworks(t *testing.T) {
	d := start(t)
	d.ok("network", "create", "n1")
	d.ok("network", "create", "n2")
	for name, eps := range map[string]map[string]*network.EndpointSettings{
		"network-scoped aliases are only supported for user-defined networks": {"bridge": {Aliases: []string{"x"}}},
		"container cannot be connected to multiple networks with one of":      {"none": {}, "n1": {}},
		"invalid MAC address":                          {"n1": {MacAddress: network.HardwareAddr{1, 2, 3, 4, 5, 6}}},
		"a link that is not in HostConfig.Links":       {"bridge": {Links: []string{"a:b"}}},
		"NetworkingConfig.DriverOpts is not supported": {"n1": {DriverOpts: map[string]string{"a": "b"}}},
	} {
		_, err := d.client.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: "img", NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: eps}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
	res, err := d.client.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: "img", NetworkingConfig: &network.NetworkingConfig{
		EndpointsConfig: map[string]*network.EndpointSettings{"n2": {Aliases: []string{"svc"}}, "n1": nil},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if out := d.ok("inspect", "-f", "{{range $n, $_ := .NetworkSettings.Networks}}{{$n}} {{end}}", res.ID); out != "n1 n2" {
		t.Errorf("networks: %q", out)
	}
}

// A container in another's network has its files and namespace, and nothing of
// its own.
func TestSharedNetwork(t *testing.T) {
	d := start(t)
	d.refused("No such container: nope", "run", "--rm", "--network", "container:nope", "img")
	d.ok("run", "-d", "--name", "owner", "img", "sleep")
	d.said()
	d.ok("run", "-d", "--name", "guest", "--network", "container:owner", "img", "sleep")
	if got, want := d.said(), "share container:"+d.ok("inspect", "-f", "{{.Id}}", "owner"); got != want {
		t.Errorf("the guest was told %q, want %q", got, want)
	}
	if out := d.ok("inspect", "-f", "{{len .NetworkSettings.Networks}}", "guest"); out != "0" {
		t.Errorf("networks: %s", out)
	}
	d.refused("container sharing network namespace with another container or host cannot be connected to any other network", "network", "connect", "bridge", "guest")
	d.refused("port publishing and the container type network mode", "create", "-p", "80", "--network", "container:owner", "img")
	d.ok("rm", "-f", "guest", "owner")
	d.ok("create", "--name", "alone", "--network", "container:alone", "img")
	d.refused("cannot join own network namespace", "start", "alone")
}

// A container in others' namespaces is told of by their IDs, and starts only
// while they run.
func TestSharedNamespaces(t *testing.T) {
	d := start(t)
	d.refused("No such container: nope", "create", "--pid", "container:nope", "img")
	d.refused("No such container: nope", "create", "--ipc", "container:nope", "img")
	d.refused(`can't join IPC of container : invalid name or ID supplied: ""`, "run", "--ipc", "container:", "img")
	d.ok("create", "--name", "owner", "--ipc", "shareable", "img", "sleep")
	owner := d.ok("inspect", "-f", "{{.Id}}", "owner")
	for _, name := range []string{"pid", "ipc", "network"} {
		d.ok("create", "--name", "in-"+name, "--init", "--"+name, "container:owner", "img", "sleep")
	}
	modes := "{{.HostConfig.PidMode}} {{.HostConfig.IpcMode}} {{.HostConfig.NetworkMode}}"
	for name, want := range map[string]string{
		"in-pid": "container:" + owner + " private bridge", "in-ipc": " container:" + owner + " bridge", "in-network": " private container:" + owner,
	} {
		if got := d.ok("inspect", "-f", modes, name); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: modes %q, want %q", name, got, want)
		}
	}
	d.refused("daemon: container "+owner+" is not running", "start", "in-pid")
	d.refused("daemon: can't join IPC of container "+owner+": container "+owner+" is not running", "start", "in-ipc")
	d.ok("start", "owner")
	d.ok("rename", "owner", "owner2")
	d.said()
	d.ok("start", "in-pid")
	d.ok("start", "in-ipc")
	if got, want := d.said(), "share container:"+owner+"\nshare container:"+owner; got != want {
		t.Errorf("the guest was told %q, want %q", got, want)
	}
	// A second one may be in the namespace, of whoever has it; a private one may not.
	d.ok("run", "-d", "--name", "third", "--ipc", "container:in-ipc", "img", "sleep")
	d.refused("non-shareable IPC (hint: use IpcMode:shareable for the donor container)", "run", "--ipc", "container:in-pid", "img")
	d.ok("run", "-d", "--name", "own-shm", "--ipc", "shareable", "-v", "data:/dev/shm", "img", "sleep")
	d.refused("non-shareable IPC", "run", "--ipc", "container:own-shm", "img")
	d.ok("rm", "-f", "owner2")
	d.refused("No such container: "+owner, "start", "in-network")
}

// Containers come back after those whose namespaces they are in.
func TestSharedNamespacesComeBack(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "owner", "--restart", "always", "--ipc", "shareable", "img", "sleep")
	// It has ended before, so its back-off will be longer than the others'.
	d.machine.crash()
	until(t, "the owner is back", func() bool { return d.inspect("owner", "{{.RestartCount}} {{.State.Status}}") == "1 running" })
	for _, name := range []string{"one", "two", "three", "four"} {
		d.ok("run", "-d", "--name", name, "--restart", "always", "--pid", "container:owner", "--ipc", "container:owner", "--network", "container:owner", "img", "sleep")
	}
	up := func() bool { return len(strings.Fields(d.ok("ps", "-q", "-f", "status=running"))) == 5 }
	d.machine.crash()
	until(t, "all are back after the machine's end", up)
}

// Scripts find a container's address at the place where it was before API 1.52.
func TestInspectBefore152(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	ip := d.ok("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "up")
	for version, want := range map[string]bool{"1.41": true, "1.51": true, "1.52": false} {
		_, body := d.raw("GET", "/v"+version+"/containers/up/json", "")
		var c struct {
			ID              string `json:"Id"`
			NetworkSettings struct {
				IPAddress   string
				IPPrefixLen int
				Networks    map[string]any
			}
		}
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			t.Fatal(err)
		}
		s := c.NetworkSettings
		if c.ID == "" || s.Networks["bridge"] == nil || (s.IPAddress == ip && s.IPPrefixLen == 16) != want || (s.IPAddress == "") == want {
			t.Errorf("%s: %+v, want address %s: %v", version, c, ip, want)
		}
	}
}

// Until API 1.44 a container's hardware address was its own, not an endpoint's.
func TestMACBefore144(t *testing.T) {
	d := start(t)
	d.ok("network", "create", "front")
	for i, c := range []struct{ body, mac string }{
		{`{"Image":"img","MacAddress":"02:00:00:00:00:0a"}`, "02:00:00:00:00:0a"},
		{`{"Image":"img","MacAddress":"02:00:00:00:00:0b","HostConfig":{"NetworkMode":"front"}}`, "02:00:00:00:00:0b"},
		{`{"Image":"img","MacAddress":"02:00:00:00:00:0c","NetworkingConfig":{"EndpointsConfig":{"default":{}}}}`, "02:00:00:00:00:0c"},
		{`{"Image":"img","MacAddress":"here"}`, "invalid MAC address: here"},
		{`{"Image":"img","MacAddress":"02:00:00:00:00:0d","HostConfig":{"NetworkMode":"host"}}`, "mac-address and the network mode"},
		{`{"Image":"img","MacAddress":"02:00:00:00:00:0d","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:00:00:00:00:0e"}}}}`, "must match"},
	} {
		name := fmt.Sprint("mac", i)
		_, body := d.raw("POST", "/v1.43/containers/create?name="+name, c.body)
		if !strings.HasPrefix(c.mac, "02:") {
			if !strings.Contains(body, c.mac) {
				t.Errorf("%s: %s, want %s", c.body, body, c.mac)
			}
			continue
		}
		d.ok("start", name)
		if out := d.ok("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.MacAddress}} {{end}}", name); out != c.mac {
			t.Errorf("%s: %q", c.body, out)
		}
	}
}

// A container's ports come and go with the networks that it can be reached in.
func TestPortsFollowNetworks(t *testing.T) {
	d := start(t)
	d.ok("network", "create", "--internal", "shut")
	d.ok("network", "create", "open")
	d.ok("run", "-d", "--name", "web", "--network", "shut", "-p", "80", "img", "sleep")
	d.said()
	if out := d.ok("port", "web"); out != "" {
		t.Errorf("in an internal network: %s", out)
	}
	d.ok("network", "connect", "open", "web")
	if out := d.ok("port", "web"); !strings.HasPrefix(out, "80/tcp -> 0.0.0.0:") {
		t.Errorf("in an open network: %q", out)
	}
	if got := d.said(); !strings.HasPrefix(got, "connect open") || !strings.HasSuffix(got, "\npublish 1") {
		t.Errorf("the guest was told %q", got)
	}
	d.ok("network", "disconnect", "open", "web")
	if out := d.ok("port", "web"); out != "" {
		t.Errorf("after the open network: %s", out)
	}
	if got := d.said(); got != "disconnect open\npublish 0" && got != "disconnect \npublish 0" {
		t.Errorf("the guest was told %q", got)
	}
}
