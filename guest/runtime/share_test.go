package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharing is a spec whose container is in namespaces of another.
func sharing(t *testing.T, c *Container, kinds map[specs.LinuxNamespaceType]string, args ...string) *specs.Spec {
	spec := dockerSpec(t, args...)
	for i, ns := range spec.Linux.Namespaces {
		if file := kinds[ns.Type]; file != "" {
			spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", c.Process().Pid(), file)
		}
	}
	return spec
}

// TestContainerSharedPID: a container in another's pid namespace sees its
// processes, has limits, a cgroup and a root of its own, and ends with it.
func TestContainerSharedPID(t *testing.T) {
	r := newRuntime(t)
	owner := start(t, r, dockerSpec(t, "sleep", "100"), nil)
	pid := map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "pid"}

	spec := sharing(t, owner, pid, "sh", "-c", `tr '\0' ' ' </proc/1/cmdline; echo; echo self $$; cat /proc/self/cgroup; grep -E '^(CapEff|Seccomp:|SigBlk)' /proc/self/status; mount | grep proc; ls -l /proc/self/fd; cat /proc/kcore | wc -c; echo x >/proc/sys/kernel/domainname; exit 7`)
	out, code := run(t, r, config(t, spec))
	t.Log(out)
	if code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	for _, want := range []string{
		"sleep 100 \n", "0::/\n", "CapEff:\t00000000a80425fb\n", "Seccomp:\t2\n", "SigBlk:\t0000000000000000\n",
		"proc on /proc type proc (rw,nosuid,nodev,noexec", "proc on /proc/sys type proc (ro,", "Read-only file system",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if strings.Contains(out, "self 1\n") || strings.Contains(out, "sampan-stage2") || strings.Count(out, " -> ") > 4 {
		t.Error("it is PID 1, stage 2 is still there, or has left descriptors open")
	}

	// One process is the limit: the first, which is a fork. It comes once that runs.
	spec = sharing(t, owner, pid, "sh", "-c", "until [ $(cat /sys/fs/cgroup/pids.max) = 1 ]; do :; done; true | true; echo $?")
	limit := int64(1)
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	if out, _ := run(t, r, config(t, spec)); !strings.Contains(out, "can't fork") {
		t.Errorf("pids.max of 1: %q", out)
	}

	// Errors are told as those of other containers are.
	for _, tt := range []struct {
		arg   string
		class error
	}{{"foo", ErrNotFound}, {"/bin/plain", ErrNotExecutable}, {"/bin/noformat", ErrNotExecutable}} {
		c, err := r.Create(t.Context(), config(t, sharing(t, owner, pid, tt.arg)), Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Process().Start(); !errors.Is(err, tt.class) {
			t.Errorf("%s: %v, want %v", tt.arg, err, tt.class)
		}
		if err := c.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// One that is never started leaves nothing behind.
	c, err := r.Create(t.Context(), config(t, sharing(t, owner, pid, "true")), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Destroy(t.Context()); err != nil {
		t.Error(err)
	}

	// An exec is in the same namespace; a kill is the container's alone.
	guest := start(t, r, sharing(t, owner, pid, "sleep", "200"), nil)
	o := newOutput(t)
	p := *dockerSpec(t, "ps").Process
	e, err := guest.Exec(t.Context(), &p, Stdio{Stdout: o.w, Stderr: o.w})
	o.w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	if out := <-o.text; !strings.Contains(out, "sleep 100") || !strings.Contains(out, "sleep 200") {
		t.Errorf("exec sees\n%s", out)
	}
	if err := guest.SignalAll(int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if st, err := guest.Process().Wait(t.Context()); err != nil || st.Code != 137 {
		t.Errorf("killed: %v %v", st, err)
	}
	if err := owner.Process().Signal(0); err != nil {
		t.Errorf("the other container: %v", err)
	}

	// The end of the namespace's first process is that of all.
	guest = start(t, r, sharing(t, owner, pid, "sleep", "300"), nil)
	ns := sharing(t, owner, pid, "true")
	p.Args = []string{"true"}
	late, err := guest.Exec(t.Context(), &p, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	held, err := r.Create(t.Context(), config(t, ns), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.SignalAll(int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Container{owner, guest} {
		if st, err := c.Process().Wait(t.Context()); err != nil || st.Code != 137 {
			t.Errorf("end of the namespace: %v %v", st, err)
		}
	}
	// What comes too late is told from what can't be started at all.
	for _, p := range []*Process{held.Process(), late} {
		if err := p.Start(); !errors.Is(err, ErrNotRunning) {
			t.Errorf("started in a pid namespace that has ended: %v", err)
		}
	}
	if err := held.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestContainerSharedIPC: what one container puts into its IPC namespace, the
// other finds there.
func TestContainerSharedIPC(t *testing.T) {
	r := newRuntime(t)
	owner := start(t, r, dockerSpec(t, "sh", "-c", "touch /dev/mqueue/note; exec sleep 100"), nil)
	spec := sharing(t, owner, map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "ipc"}, "sh", "-c", "until [ -e /dev/mqueue/note ]; do sleep 0.1; done; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid")
	out, code := run(t, r, config(t, spec))
	if code != 0 {
		t.Fatalf("code %d: %s", code, out)
	}
	var names []string
	for _, file := range []string{"ipc", "pid"} {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", owner.Process().Pid(), file))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if got := strings.Fields(out); got[0] != names[0] || slices.Contains(got, names[1]) {
		t.Errorf("namespaces %q, the owner's %q", got, names)
	}
}
