package api_test

import (
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	d := start(t)
	for _, c := range []struct {
		name          string
		args          []string
		stdin         string
		out, errWords string
		code          int
	}{
		{"stdout", []string{"echo", "hello"}, "", "hello\n", "", 0},
		{"stderr", []string{"err", "oops"}, "", "", "oops", 0},
		{"exit code", []string{"exit", "3"}, "", "", "", 3},
		{"not found", []string{"missing"}, "", "", `exec: "missing": executable file not found in $PATH`, 127},
		{"not executable", []string{"noexec"}, "", "", "permission denied", 126},
		{"stdin ends, output still comes", []string{"wc"}, strings.Repeat("x", 1<<20), "1048576\n", "", 0},
		{"stdin to stdout", []string{"cat"}, strings.Repeat("0123456789abcdef", 1<<17), strings.Repeat("0123456789abcdef", 1<<17), "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "-i", "img"}, c.args...)
			out, errs, code := d.docker(strings.NewReader(c.stdin), args...)
			if out != c.out || !strings.Contains(errs, c.errWords) || code != c.code {
				t.Errorf("code %d, %d bytes %.60q, stderr %q; want %d, %d bytes %.60q, %q", code, len(out), out, errs, c.code, len(c.out), c.out, c.errWords)
			}
		})
	}
	until(t, "--rm", func() bool { return d.ok("ps", "-aq") == "" })
}

// The end of the output comes after all of it, also when much is under way.
func TestOutputTail(t *testing.T) {
	d := start(t)
	for range 5 {
		out, _, _ := d.docker(nil, "run", "--rm", "img", "spam", "3000000")
		if len(out) != 3000000/16*16+5 || !strings.HasSuffix(out, "last\n") {
			t.Fatalf("%d bytes, the end is %q", len(out), out[max(0, len(out)-20):])
		}
	}
	d.ok("run", "--name", "cc", "img", "spam", "3000000")
	if out := d.ok("logs", "cc"); !strings.HasSuffix(out, "last") || len(out) != 3000000+4 {
		t.Errorf("the log has %d bytes", len(out))
	}
}

func TestWords(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "-v", "data:/data", "-p", "127.0.0.1::80", "img", "sleep")
	d.ok("create", "--name", "made", "img")
	port := d.ok("port", "up", "80")
	d.refused(`Conflict. The container name "/up" is already in use by container "`+d.ok("inspect", "-f", "{{.Id}}", "up")+`". You have to remove (or rename) that container to be able to reuse that name.`, "create", "--name", "up", "img")
	d.refused("Bind for "+port+" failed: port is already allocated", "run", "--rm", "-p", port+":80", "img")
	d.refused("No such container: nope", "inspect", "--type", "container", "nope")
	d.refused("No such image: nope:latest", "create", "--pull", "never", "nope")
	d.refused("volume is in use - ["+d.ok("inspect", "-f", "{{.Id}}", "up")+"]", "volume", "rm", "data")
	d.refused(`cannot remove container "/up": container is running: stop the container before removing or force remove`, "rm", "up")
	d.refused("is using its referenced image", "rmi", "img")
	d.refused("is not running", "kill", "made")
	d.refused("is not running", "exec", "made", "true")
	d.refused("invalid signal: NOPE", "kill", "-s", "NOPE", "up")
	d.refused("get nope: no such volume", "volume", "inspect", "nope")
	d.refused("network nope not found", "network", "inspect", "nope")
	d.refused("invalid filter 'nope'", "ps", "-f", "nope=1")
	d.refused(`the network driver "macvlan" is not supported`, "network", "create", "-d", "macvlan", "n")
	d.ok("rm", "-f", "up", "made")
	d.ok("volume", "rm", "data")
	d.ok("rmi", "img")
	g := d.machine.running()
	until(t, "the guest looks for layers to let go of", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.looked == 1
	})
}

// A container is shown with the name of its image, as long as that is its.
func TestNameOfImage(t *testing.T) {
	d := start(t)
	d.ok("tag", "img", "other:1")
	d.ok("run", "-d", "--name", "up", "other:1", "sleep")
	shown := func() string { return d.ok("ps", "--no-trunc", "--format", "{{.Image}}") }
	if got := shown(); got != "other:1" {
		t.Errorf("ps shows %q", got)
	}
	d.ok("rmi", "other:1")
	if got, want := shown(), d.ok("inspect", "-f", "{{.Image}}", "up"); got != want {
		t.Errorf("without the tag ps shows %q, want %q", got, want)
	}
}

// A port is published while its container runs.
func TestPublishedWhileRunning(t *testing.T) {
	d := start(t)
	d.ok("create", "--name", "web", "-p", "127.0.0.1::80", "--expose", "90", "img", "sleep")
	found := func(filter string) string {
		return d.ok("ps", "-a", "-f", filter, "--format", "{{.Names}}")
	}
	for _, filter := range []string{"publish=80", "expose=90"} {
		if got := found(filter); got != "" {
			t.Errorf("%s finds %q, which doesn't run", filter, got)
		}
	}
	d.ok("start", "web")
	for filter, want := range map[string]string{"publish=80": "web", "expose=80": "web", "expose=90": "web", "publish=81": ""} {
		if got := found(filter); got != want {
			t.Errorf("%s finds %q, want %q", filter, got, want)
		}
	}
}

// What is not supported is refused by its name.
func TestUnsupported(t *testing.T) {
	d := start(t)
	for field, args := range map[string][]string{
		"HostConfig.LogConfig.Type":              {"--log-driver", "syslog"},
		`HostConfig.LogConfig.Config "compress"`: {"--log-opt", "compress=true"},
		"HostConfig.Runtime":                     {"--runtime", "runc"},
		"HostConfig.CgroupParent":                {"--cgroup-parent", "/x"},
		"HostConfig.PortBindings of 53/sctp":     {"-p", "53:53/sctp"},
		"label sampan.proxy-protocol for":        {"-l", "sampan.proxy-protocol=53/udp"},
		"HostConfig.OomKillDisable":              {"--oom-kill-disable", "-m", "10m"},
		"HostConfig.StorageOpt":                  {"--storage-opt", "size=1G"},
	} {
		d.refused(field, append(append([]string{"create"}, args...), "img")...)
	}
	if out := d.ok("ps", "-aq"); out != "" {
		t.Errorf("left: %s", out)
	}
}

func TestExec(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "cc", "img", "sleep")
	for _, c := range []struct {
		args     []string
		stdin    string
		out, err string
		code     int
	}{
		{[]string{"cc", "echo", "hi"}, "", "hi\n", "", 0},
		{[]string{"cc", "err", "hi"}, "", "", "hi\n", 0},
		{[]string{"cc", "exit", "7"}, "", "", "", 7},
		{[]string{"-i", "cc", "wc"}, "12345", "5\n", "", 0},
		{[]string{"cc", "missing"}, "", "executable file not found", "", 127},
		{[]string{"cc", "noexec"}, "", "permission denied", "", 126},
		{[]string{"-w", "relative", "cc", "echo", "hi"}, "", "exec failed: Cwd must be an absolute path\r\n", "", 126},
		{[]string{"-e", "A=b", "cc", "env"}, "", "A=b", "", 0},
	} {
		out, errs, code := d.docker(strings.NewReader(c.stdin), append([]string{"exec"}, c.args...)...)
		if !strings.Contains(out, c.out) || !strings.Contains(errs, c.err) || code != c.code {
			t.Errorf("exec %q: code %d, %q, %q; want %d, %q, %q", c.args, code, out, errs, c.code, c.out, c.err)
		}
	}
	// One that comes too late for its container ends as if it had come in time.
	d.ok("run", "-d", "--name", "dies", "img", "sleep")
	if out, errs, code := d.docker(nil, "exec", "dies", "late"); out+errs != "" || code != 137 {
		t.Errorf("exec in a container that is killed: code %d, %q, %q", code, out, errs)
	}
	if code, body := d.raw("POST", "/containers/cc/exec", `{"Cmd":[]}`); code != 400 {
		t.Errorf("exec of nothing: %d %s", code, body)
	}
	if code, body := d.raw("POST", "/exec/nope/start", `{}`); code != 404 || !strings.Contains(body, "No such exec instance: nope") {
		t.Errorf("start of no exec: %d %s", code, body)
	}
}

func TestStopAndKill(t *testing.T) {
	d := start(t)
	code := func(name string) string { return d.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name) }
	d.ok("run", "-d", "--name", "aa", "img", "sleep")
	d.ok("stop", "aa")
	if got := code("aa"); got != "exited 143" {
		t.Errorf("stopped: %s", got)
	}
	d.ok("stop", "aa") // 304 is no error
	d.ok("start", "aa")
	d.ok("kill", "aa")
	if got := code("aa"); got != "exited 137" {
		t.Errorf("killed: %s", got)
	}
	d.ok("run", "-d", "--name", "other", "img", "stubborn")
	begun := time.Now()
	d.ok("stop", "-t", "1", "other")
	if got := code("other"); got != "exited 137" || time.Since(begun) < time.Second {
		t.Errorf("stubborn: %s after %s", got, time.Since(begun))
	}
	d.ok("rename", "other", "cc")
	d.refused("No such container: other", "start", "other")
	d.ok("restart", "cc")
	if got := code("cc"); got != "running 0" {
		t.Errorf("restarted: %s", got)
	}
	d.ok("rm", "-f", "cc")
	for range 10 { // one that ends by itself meanwhile
		d.ok("start", "aa")
		d.ok("kill", "-s", "TERM", "aa")
		d.ok("stop", "-t", "0", "aa")
	}
	d.ok("run", "-d", "--rm", "--name", "auto", "img", "stubborn")
	d.ok("rm", "-f", "auto")
	d.ok("run", "-d", "--rm", "--name", "auto", "img", "sleep")
	d.ok("stop", "auto")
	until(t, "removal of auto", func() bool { return strings.Contains(d.status("auto"), "No such container") })
}
