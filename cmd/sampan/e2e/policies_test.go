package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Restart policies outlive the machine's and the daemon's death, and remember
// what a user has stopped.
func TestRestartPolicies(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	state := func(name string) string {
		t.Helper()
		return strings.TrimSpace(h.sampan(t, "inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", name))
	}
	h.must(t, "docker", "run", "-d", "--name", "fails", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 3")
	h.sampan(t, "run", "-d", "--name", "works", "--restart", "on-failure", "busybox", "true")
	eventually(t, 30*time.Second, "two more runs, and no third", func() bool { return state("fails") == "2 exited 3" })
	if out := h.must(t, "docker", "logs", "fails"); out != "run\nrun\nrun\n" {
		t.Errorf("fails said %q", out)
	}
	eventually(t, 10*time.Second, "end", func() bool { return state("works") == "0 exited 0" })
	h.sampan(t, "start", "-a", "works")

	for _, c := range [][2]string{{"always", "always"}, {"unless", "unless-stopped"}, {"stopped", "unless-stopped"}, {"once", "no"}} {
		h.sampan(t, "run", "-d", "--name", c[0], "--restart", c[1], "--stop-signal", "KILL", "busybox", "sleep", "1000")
	}
	h.must(t, "docker", "stop", "-t", "0", "stopped")
	back := func(what string) {
		t.Helper()
		eventually(t, 60*time.Second, "what its policy brings back after "+what, func() bool {
			out := h.sampan(t, "ps", "--format", "{{.Names}}")
			return strings.Contains(out, "always") && strings.Contains(out, "unless")
		})
		if out := h.sampan(t, "ps", "--format", "{{.Names}}"); strings.Contains(out, "stopped") || strings.Contains(out, "once") || strings.Contains(out, "fails") {
			t.Errorf("after %s: %s", what, out)
		}
	}
	pid := h.pid(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !waitGone(pid, 20*time.Second) {
		t.Fatal("the daemon lives on")
	}
	back("kill -9 of the daemon")
	h.sampan(t, "machine", "stop")
	h.sampan(t, "run", "--rm", "busybox", "true") // whatever boots it again
	back("a stop of the machine")
}

// Logs rotate; a container without a log has none; what the kernel kills for
// lack of memory is said to be so; who does not read holds up nobody.
func TestLogDriversAndOOM(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.must(t, "docker", "run", "--name", "talks", "--log-opt", "max-size=10k", "--log-opt", "max-file=3", "busybox", "seq", "10000")
	dirs, err := filepath.Glob(filepath.Join(h.dir, "containers", "*", "json.log*"))
	if err != nil || len(dirs) != 3 {
		t.Errorf("log files: %q, %v", dirs, err)
	}
	for _, d := range dirs {
		if fi, err := os.Stat(d); err != nil || fi.Size() > 11<<10 {
			t.Errorf("%s: %v bytes, %v", d, fi.Size(), err)
		}
	}
	if out := h.sampan(t, "logs", "--tail", "200", "talks"); !strings.HasPrefix(out, "9801\n") || !strings.HasSuffix(out, "\n10000\n") {
		t.Errorf("the tail begins with %.10q and ends with %q", out, out[max(0, len(out)-10):])
	}
	h.must(t, "docker", "run", "--name", "says", "-l", "team=a b", "-e", "E=1", "--log-opt", "labels-regex=^te", "--log-opt", "env=E", "--log-opt", "tag={{.Name}}", "busybox", "echo", "one")
	for _, client := range []string{"docker", "sampan"} {
		if out := h.must(t, client, "logs", "--details", "says"); out != "E=1,tag=says,team=a+b one\n" {
			t.Errorf("%s logs --details: %q", client, out)
		}
	}
	h.sampan(t, "run", "--name", "silent", "--log-driver", "none", "busybox", "echo", "not kept")
	for _, client := range []string{"docker", "sampan"} {
		if r := h.try(t, "", client, "logs", "silent"); r.code != 1 || !strings.Contains(r.stderr, "configured logging driver does not support reading") {
			t.Errorf("%s logs: %+v", client, r)
		}
		if r := h.try(t, "", client, "run", "--log-driver", "syslog", "busybox", "true"); r.code != 125 || !strings.Contains(r.stderr, `"syslog" is not supported`) {
			t.Errorf("%s --log-driver syslog: %+v", client, r)
		}
	}
	since := fmt.Sprint(time.Now().Unix() - 1)
	r := h.try(t, "", "docker", "run", "--name", "greedy", "-m", "16m", "busybox", "tail", "/dev/zero")
	if out := h.sampan(t, "inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "greedy"); r.code != 137 || out != "true 137\n" {
		t.Errorf("exit code %d, inspect: %q", r.code, out)
	}
	out := h.must(t, "docker", "events", "--since", since, "--until", time.Now().Format(time.RFC3339Nano), "-f", "container=greedy", "--format", "{{.Action}}")
	if !strings.Contains(out, "start\noom\ndie\n") {
		t.Errorf("events: %q", out)
	}
	h.muchOutput(t)
	h.slowReaders(t)
}

// muchOutput has a container write a gigabyte by night, else a sixteenth of it: the
// daemon and the agent keep no more of it than of a kilobyte.
func (h *home) muchOutput(t *testing.T) {
	const kilobyte = "busybox yes $(busybox printf %01023d 7) | busybox head -n "
	lines := 64 << 10
	if nightly() {
		lines = 1 << 20
	}
	write := func(lines int) use {
		h.sampan(t, "run", "--name", "writes", "-d", "--log-opt", "max-size=1m", "busybox", "sh", "-c", kilobyte+strconv.Itoa(lines))
		if out := h.sampan(t, "wait", "writes"); out != "0\n" {
			t.Errorf("exit code %q after %d KiB of output", out, lines)
		}
		u := h.use(t)
		if out := h.sampan(t, "logs", "--tail", "1", "writes"); len(out) != 1024 {
			t.Errorf("the last of %d lines has %d bytes", lines, len(out))
		}
		h.sampan(t, "rm", "writes")
		return u
	}
	little, much := write(1), write(lines)
	t.Logf("after 1 KiB of output, and after %d: %+v, %+v", lines, little, much)
	// What a collection of garbage may leave, and buffers of their full size.
	const more = 16 << 20
	if d := much.DaemonMemory - little.DaemonMemory; d > more {
		t.Errorf("the daemon has %d MiB more", d>>20)
	}
	if d := much.AgentMemory - little.AgentMemory; d > more/2 {
		t.Errorf("the agent has %d MiB more", d>>20)
	}
}
