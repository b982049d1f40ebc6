package api_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func (d *daemon) inspect(name, format string) string {
	d.t.Helper()
	return d.ok("inspect", "-f", format, name)
}

func TestRestartPolicies(t *testing.T) {
	d := start(t)
	count := func(name string) string { return d.inspect(name, "{{.RestartCount}} {{.State.Status}}") }
	d.ok("run", "-d", "--name", "fails", "--restart", "on-failure:2", "img", "exit", "1")
	d.ok("run", "-d", "--name", "works", "--restart", "on-failure:2", "img", "exit", "0")
	d.ok("run", "-d", "--name", "always", "--restart", "always", "img", "sleep")
	until(t, "two restarts", func() bool { return count("fails") == "2 exited" })
	until(t, "end", func() bool { return count("works") == "0 exited" })
	// From inside it ends and comes back; a user's stop is for good.
	d.ok("kill", "-s", "INT", "always") // ignored by the fake's sleep
	d.ok("exec", "always", "true")
	d.machine.crash()
	until(t, "restart after a crash of the machine", func() bool { return count("always") == "1 running" })
	d.ok("stop", "always")
	if got := count("always"); got != "1 exited" {
		t.Errorf("stopped: %s", got)
	}
	// Waiting to be restarted.
	d.ok("run", "-d", "--name", "loops", "--restart", "always", "img", "exit", "1")
	until(t, "back-off", func() bool { return d.status("loops") == "restarting" })
	d.refused("stop the container before removing or force remove", "rm", "loops")
	d.ok("stop", "loops")
	was := d.inspect("loops", "{{.RestartCount}}")
	time.Sleep(300 * time.Millisecond) // in which it would have come back
	if got := d.inspect("loops", "{{.RestartCount}} {{.State.Status}}"); got != was+" exited" {
		t.Errorf("stopped in its back-off: %s, was %s", got, was)
	}
	if code, body := d.raw("POST", "/containers/create", `{"Image":"img","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}`); code != 400 || !strings.Contains(body, "can't create 'AutoRemove' container with restart policy") {
		t.Errorf("%d %s", code, body)
	}
}

// A new daemon finds what the old one left.
func TestDaemonRestart(t *testing.T) {
	d := start(t)
	d.docker(nil, "run", "--name", "done", "img", "exit", "4")
	d.ok("run", "-d", "--name", "up", "-l", "a=b", "-v", "vol:/v", "img", "sleep")
	d.ok("run", "-d", "--name", "always", "--restart", "always", "img", "sleep")
	d.ok("run", "-d", "--name", "unless", "--restart", "unless-stopped", "img", "sleep")
	d.ok("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "img", "sleep")
	d.ok("stop", "stopped")
	d.ok("create", "--name", "made", "img")
	d.ok("create", "--rm", "--name", "made-rm", "img")
	d.ok("run", "-d", "--rm", "--name", "up-rm", "-v", "/anonymous", "img", "sleep")
	// As after kill -9: the records say "running".
	saved := filepath.Join(t.TempDir(), "containers")
	if err := os.CopyFS(saved, os.DirFS(filepath.Join(d.home, "containers"))); err != nil {
		t.Fatal(err)
	}
	d.stop()
	for _, step := range []error{
		os.RemoveAll(filepath.Join(d.home, "containers")),
		os.Rename(saved, filepath.Join(d.home, "containers")),
		os.MkdirAll(filepath.Join(d.home, "containers", "torn"), 0o700),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	d.serve()
	d.engine.Restart(t.Context())
	for name, want := range map[string]string{
		"done": "exited 4", "up": "exited 255", "always": "running 0", "unless": "running 0",
		"stopped": "exited 143", "made": "created 0",
	} {
		if got := d.inspect(name, "{{.State.Status}} {{.State.ExitCode}}"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"made-rm", "up-rm"} {
		d.refused("No such container", "inspect", "--type", "container", name)
	}
	if out := d.ok("volume", "ls", "-q"); out != "vol" {
		t.Errorf("volumes: %s", out)
	}
	if out := d.ok("ps", "-a", "-f", "label=a=b", "--format", "{{.Names}} {{.Status}}"); !strings.HasPrefix(out, "up Exited (255)") {
		t.Errorf("ps: %s", out)
	}
	if _, err := os.Stat(filepath.Join(d.home, "containers", "torn")); !os.IsNotExist(err) {
		t.Errorf("a torn container: %v", err)
	}
	d.refused("is using its referenced image", "rmi", "img")
	d.ok("start", "up")
	if got := d.status("up"); got != "running" {
		t.Errorf("started again: %s", got)
	}
}

// events collects until the last has come, and returns "type action name".
func (d *daemon) events(since time.Time, last string, do func()) []string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	ev := d.client.Events(ctx, client.EventsListOptions{Since: since.Format(time.RFC3339Nano)})
	do()
	var got []string
	for {
		select {
		case m := <-ev.Messages:
			action, _, _ := strings.Cut(string(m.Action), ":")
			line := fmt.Sprintf("%s %s", m.Type, action)
			if c := m.Actor.Attributes["exitCode"]; c != "" {
				line += " " + c
			}
			got = append(got, line)
			if line == last {
				return got
			}
		case err := <-ev.Err:
			d.t.Fatalf("events end after %q: %v", got, err)
		}
	}
}

// Until API 1.52 events of containers and images had fields that are elsewhere, too.
func TestEventsBefore152(t *testing.T) {
	d := start(t)
	begin := time.Now()
	d.ok("create", "--name", "made", "img")
	d.ok("volume", "create", "vv")
	id := d.ok("inspect", "-f", "{{.Id}}", "made")
	for version, earlier := range map[string]bool{"1.41": true, "1.51": true, "1.52": false} {
		_, body := d.raw("GET", fmt.Sprintf("/v%s/events?since=%f&until=%f", version, float64(begin.UnixNano())/1e9, float64(time.Now().UnixNano())/1e9), "")
		if has := strings.Contains(body, `"status":"create","id":"`+id+`","from":"img","Type":"container","Action":"create"`); has != earlier || !strings.Contains(body, `"Type":"container"`) {
			t.Errorf("%s: %s", version, body)
		}
		if n := strings.Count(body, `"status"`); earlier && n != 1 {
			t.Errorf("%s: %d events have a status", version, n)
		}
	}
}

func TestEvents(t *testing.T) {
	d := start(t)
	want := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%q\nwant %q", got, want)
		}
	}
	want(d.events(time.Now(), "container destroy", func() { d.docker(nil, "run", "--rm", "img", "exit", "3") }),
		"container create", "container attach", "network connect", "container start", "container die 3", "network disconnect", "container destroy")
	want(d.events(time.Now(), "container stop", func() { d.ok("run", "-d", "--name", "cc", "img", "sleep"); d.ok("stop", "cc") }),
		"container create", "network connect", "container start", "container kill", "container die 143", "network disconnect", "container stop")
	want(d.events(time.Now(), "container destroy", func() { d.ok("start", "cc"); d.ok("rm", "-f", "cc") }),
		"network connect", "container start", "container kill", "container die 137", "network disconnect", "container destroy")
	// What is killed needs no thaw.
	want(d.events(time.Now(), "container destroy", func() {
		d.ok("run", "-d", "--rm", "--name", "frozen", "img", "sleep")
		d.ok("pause", "frozen")
		d.ok("kill", "frozen")
	}), "container create", "network connect", "container start", "container pause", "container kill", "container die 137", "network disconnect", "container destroy")
	want(d.events(time.Now(), "volume destroy", func() { d.ok("volume", "create", "vv"); d.ok("volume", "rm", "vv") }),
		"volume create", "volume destroy")
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	want(d.events(time.Now(), "container exec_die 5", func() { d.docker(nil, "exec", "up", "exit", "5") }),
		"container exec_create", "container exec_start", "container exec_die 5")
	want(d.events(time.Now(), "container die 255", d.machine.crash), "container die 255")
}

// When the machine ends, its containers have ended with 255, and their clients
// are told.
func TestMachineCrash(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"sleep"}}, container.HostConfig{})
	wait := d.client.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	a := d.attach(id)
	d.startID(id)
	follow := make(chan string, 1)
	go func() { out, _, _ := d.docker(nil, "logs", "-f", id); follow <- out }()
	until(t, "ready", func() bool { return d.ok("logs", id) == "ready" })
	d.machine.crash()
	select {
	case r := <-wait.Result:
		if r.StatusCode != 255 || r.Error == nil || !strings.Contains(r.Error.Message, "the virtual machine ended") {
			t.Errorf("%+v", r)
		}
	case err := <-wait.Error:
		t.Error(err)
	case <-time.After(patience):
		t.Error("wait has not ended")
	}
	var n countLast
	if _, err := a.Reader.WriteTo(&n); err != nil {
		t.Errorf("attached client: %v", err)
	}
	<-follow
	if got := d.inspect(id, "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}"); !strings.HasPrefix(got, "exited 255 the virtual machine ended") {
		t.Error(got)
	}
	d.startID(id) // boots again
	if d.machine.boots != 2 {
		t.Errorf("%d boots", d.machine.boots)
	}
	d.ok("rm", "-f", id)
	until(t, "nothing to hold the machine", func() bool {
		d.machine.mu.Lock()
		defer d.machine.mu.Unlock()
		return d.machine.holds == 0
	})
}

func TestVolumes(t *testing.T) {
	d := start(t)
	d.ok("volume", "create", "--label", "k=v", "named")
	d.ok("create", "--name", "cc", "-v", "named:/n", "-v", "/anonymous", "--mount", "type=volume,src=other,dst=/o", "img")
	anonymous := d.inspect("cc", `{{range .Mounts}}{{if eq .Destination "/anonymous"}}{{.Name}}{{end}}{{end}}`)
	list := func(args ...string) string {
		names := strings.Fields(d.ok(append([]string{"volume", "ls", "-q"}, args...)...))
		slices.Sort(names)
		return strings.ReplaceAll(strings.Join(names, " "), anonymous, "ANON")
	}
	for args, want := range map[string]string{
		"": "ANON named other", "-f label=k": "named", "-f label=k=x": "", "-f dangling=true": "",
		"-f dangling=false": "ANON named other", "-f name=am": "named",
	} {
		want := strings.Fields(want)
		if slices.Contains(want, "ANON") { // its name sorts anywhere
			got := strings.Fields(list(strings.Fields(args)...))
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("volume ls %s: %q, want %q", args, got, want)
			}
		} else if got := list(strings.Fields(args)...); got != strings.Join(want, " ") {
			t.Errorf("volume ls %s: %q, want %q", args, got, want)
		}
	}
	d.refused("volume is in use", "volume", "rm", "named")
	d.ok("rm", "cc")
	if out := d.ok("volume", "prune", "-f"); !strings.Contains(out, anonymous) || strings.Contains(out, "named") {
		t.Errorf("prune: %s", out)
	}
	d.ok("volume", "prune", "-af")
	if got := list(); got != "" {
		t.Errorf("left: %s", got)
	}
	if d.machine.boots != 0 {
		t.Error("booted for volumes")
	}
	// What was removed while the machine was off goes at its next boot.
	d.ok("run", "--rm", "img")
	if g := d.machine.running(); len(g.removed) < 3 {
		t.Errorf("purged %q, want the three volumes", g.removed)
	}
	d.ok("run", "--rm", "-v", "/gone", "img")
	until(t, "removal", func() bool { return d.ok("ps", "-aq") == "" && list() == "" })
}

func TestPsFilters(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "-l", "a=1", "-l", "b", "-v", "data:/d", "img", "sleep")
	d.ok("run", "--name", "ended", "-l", "a=2", "img", "true")
	d.docker(nil, "run", "--name", "failed", "img", "exit", "3")
	d.ok("create", "--name", "made", "img")
	for args, want := range map[string]string{
		"":                                "up",
		"-a":                              "made failed ended up",
		"-n 2":                            "made failed",
		"-l":                              "made",
		"-a -f status=exited":             "failed ended",
		"-f status=created":               "made",
		"-f exited=3":                     "failed",
		"-a -f name=e":                    "made failed ended",
		"-a -f name=^/?up$":               "up",
		"-a -f label=a":                   "ended up",
		"-a -f label=a=1 -f label=b":      "up",
		"-a -f before=failed":             "ended up",
		"-a -f since=ended":               "made failed",
		"-a -f volume=data":               "up",
		"-a -f volume=/d":                 "up",
		"-a -f network=bridge -f name=up": "up",
		"-a -f network=host":              "",
		"-a -f ancestor=img":              "made failed ended up",
		"-a -f ancestor=nope":             "",
		"-a -f id=" + d.inspect("up", "{{.Id}}")[:10]: "up",
	} {
		out := d.ok(append(append([]string{"ps"}, strings.Fields(args)...), "--format", "{{.Names}}")...)
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("ps %s: %q, want %q", args, got, want)
		}
	}
	d.refused("invalid filter 'status=nope'", "ps", "-f", "status=nope")
	d.refused("No such container: nope", "ps", "-f", "before=nope")
	if out := d.ok("container", "prune", "-f"); strings.Count(out, "\n") < 3 || !strings.HasSuffix(out, "Total reclaimed space: 2kB") {
		t.Errorf("prune: %s", out)
	}
	if out := d.ok("ps", "-a", "--format", "{{.Names}}"); out != "up" {
		t.Errorf("after prune: %s", out)
	}
}

// A volume's removal ends the exports and imports of it, whether they wait for
// the machine or are under way, and purges nothing before the guest is done.
func TestRemoveLentVolume(t *testing.T) {
	d := start(t)
	d.machine.slow = make(chan struct{})
	type answer struct {
		code int
		body string
	}
	answers := make(chan answer, 1)
	ask := func(method string) {
		code, body := d.raw(method, "/sampan/volumes/lent/tar", "")
		answers <- answer{code, body}
	}
	wait := func() (a answer) {
		t.Helper()
		select {
		case a = <-answers:
		case <-time.After(patience):
			t.Fatal("the client still waits")
		}
		return a
	}
	go ask("PUT")
	until(t, "the import waits for the machine", func() bool { return d.machine.waiting.Load() == 1 })
	d.ok("volume", "rm", "lent")
	if a := wait(); a.code != 409 || !strings.Contains(a.body, "volume lent was removed") {
		t.Errorf("import: %+v", a)
	}
	close(d.machine.slow)

	d.ok("volume", "create", "lent")
	conn := d.dial()
	fmt.Fprint(conn, "GET /sampan/volumes/lent/tar HTTP/1.1\r\nHost: sampan\r\n\r\n")
	if _, err := conn.Read(make([]byte, 100)); err != nil { // and no more
		t.Fatal(err)
	}
	d.ok("volume", "rm", "lent")
	g := d.machine.running()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.removed) != 2 || len(g.robbed) != 0 {
		t.Errorf("removed %q, of which in use %q; want two, none", g.removed, g.robbed)
	}
	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	if d.machine.holds != 0 {
		t.Errorf("%d holds of the machine are left", d.machine.holds)
	}
}

// The daemon ends although a client does not read.
func TestCloseWithStuckClient(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"spam", "9000000"}}, container.HostConfig{})
	d.attach(id)
	d.startID(id)
	until(t, "end", func() bool { return d.status(id) == "exited" })
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	x, err := d.client.ExecCreate(t.Context(), "up", client.ExecCreateOptions{Cmd: []string{"spam", "9000000"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.client.ExecAttach(t.Context(), x.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Reader.ReadByte(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // in which the connection fills up
	ended := make(chan struct{})
	go func() { defer close(ended); d.stop() }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the daemon does not end")
	}
}

// A start that waits for the machine is called off by who wants the container
// stopped, killed or removed, and by nobody else.
func TestCallOff(t *testing.T) {
	for _, verb := range [][]string{{"stop"}, {"kill"}, {"kill", "-s", "INT"}, {"rm", "-f"}} {
		t.Run(strings.Join(verb, " "), func(t *testing.T) {
			d := start(t)
			d.machine.slow = make(chan struct{})
			d.ok("create", "--name", "ctr", "img", "sleep")
			started := make(chan error, 1)
			go func() {
				_, err := d.client.ContainerStart(t.Context(), "ctr", client.ContainerStartOptions{})
				started <- err
			}()
			until(t, "the start waits", func() bool { return d.machine.waiting.Load() == 1 })
			if _, text, code := d.docker(nil, "rm", "ctr"); code == 0 || !strings.Contains(text, "container is starting") {
				t.Errorf("rm: %q", text)
			}
			if _, text, code := d.docker(nil, "kill", "-s", "USR1", "ctr"); code == 0 || !strings.Contains(text, "is not running") {
				t.Errorf("SIGUSR1: %q", text)
			}
			d.ok(append(verb, "ctr")...)
			select {
			case err := <-started:
				if err == nil || !strings.Contains(err.Error(), "was stopped before it had started") {
					t.Errorf("start: %v", err)
				}
			case <-time.After(patience):
				t.Fatal("the start goes on")
			}
			if verb[0] == "rm" {
				if out := d.ok("ps", "-aq"); out != "" {
					t.Errorf("left: %s", out)
				}
				return
			}
			close(d.machine.slow)
			d.ok("start", "ctr") // and it can be started again
			d.ok("rm", "-f", "ctr")
		})
	}
}

// A network that isn't there is an error of start, not of create, whose 404 the
// docker client takes for a missing image.
func TestNoNetwork(t *testing.T) {
	d := start(t)
	_, text, code := d.docker(nil, "run", "--network", "nosuch", "--name", "ctr", "img", "true")
	if code != 125 || !strings.Contains(text, "network nosuch not found") || strings.Contains(text, "Unable to find image") {
		t.Errorf("exit code %d, %q", code, text)
	}
	if got := d.ok("ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "ctr created" {
		t.Errorf("left %q", got)
	}
}
