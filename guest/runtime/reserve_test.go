package runtime

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestContainerReserve: processes in reserve are taken, hold no mount of others,
// and are done without when somebody has killed them.
func TestContainerReserve(t *testing.T) {
	r := newRuntime(t)
	reserve := func() (create, exec int) {
		t.Helper()
		if err := r.Reserve(); err != nil {
			t.Fatal(err)
		}
		return r.creates.shell.stage.child.pid, r.execs.shell.stage.child.pid
	}
	create, exec := reserve()
	if again, same := reserve(); again != create || same != exec {
		t.Errorf("started processes %d and %d beside %d and %d", again, same, create, exec)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for mounts := "/tmp"; strings.Contains(mounts, "/tmp"); {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", create))
		if mounts = string(text); err != nil || ctx.Err() != nil {
			t.Fatalf("%v, %v; mounts of the process in reserve:\n%s", err, ctx.Err(), mounts)
		}
	}
	spec := dockerSpec(t, "sleep", "100")
	c := start(t, r, spec, nil)
	if got := c.Process().Pid(); got != create {
		t.Errorf("process %d, not the one in reserve, %d", got, create)
	}
	reserve()
	for _, sh := range []*shell{r.creates.shell, r.execs.shell} {
		if err := unix.Kill(sh.stage.child.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-sh.stage.child.done
	}
	if out, code := run(t, r, config(t, dockerSpec(t, "echo", "hi"))); out != "hi\n" || code != 0 {
		t.Errorf("run: %q, %d", out, code)
	}
	if out := execIn(t, c, spec, "echo", "ho"); out != "ho\n" {
		t.Errorf("exec: %q", out)
	}
}

// execIn runs a command in a container to its end, and returns its output.
func execIn(t *testing.T, c *Container, spec *specs.Spec, args ...string) string {
	t.Helper()
	p := *spec.Process
	p.Args = args
	o := newOutput(t)
	e, err := c.Exec(t.Context(), &p, Stdio{Stdout: o.w, Stderr: o.w})
	o.w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return <-o.text
}

// TestContainerDelegates: exec works in a container that has handed controllers
// down to cgroups of its own, as a systemd or a Docker inside does.
func TestContainerDelegates(t *testing.T) {
	r := newRuntime(t)
	script := `cd /sys/fs/cgroup && echo + && mkdir init && echo 1 >init/cgroup.procs && echo +pids >cgroup.subtree_control && echo done; exec sleep 100`
	spec := dockerSpec(t, "sh", "-c", script)
	for i := range spec.Mounts {
		if spec.Mounts[i].Type == "cgroup" {
			spec.Mounts[i].Options = []string{"nosuid", "noexec", "nodev"}
		}
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	c, err := r.Create(t.Context(), config(t, spec), Stdio{Stdout: pw, Stderr: pw})
	pw.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Destroy(t.Context())
	if err := c.Process().Start(); err != nil {
		t.Fatal(err)
	}
	if err := pr.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var said string
	for buf := make([]byte, 512); !strings.HasSuffix(said, "done\n"); {
		n, err := pr.Read(buf)
		said += string(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, said)
		}
	}
	if out := execIn(t, c, spec, "cat", "/proc/self/cgroup"); out != "0::/init\n" {
		t.Errorf("exec in cgroup %q, want /init", out)
	}
}

// TestContainerSeccomp32: the filter holds for 32-bit calls too.
func TestContainerSeccomp32(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "/seccomp32")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/seccomp32", Type: "bind", Source: "/stages32/seccomp32", Options: []string{"bind"}})
	out, _ := run(t, r, config(t, spec))
	if want := "0xffffffff: 0\n0x1234: 1\n"; out != want {
		t.Errorf("with the filter %q, want %q", out, want)
	}
	spec.Linux.Seccomp = nil
	out, _ = run(t, r, config(t, spec))
	if want := "0xffffffff: 0\n0x1234: 0\n"; out != want {
		t.Errorf("without a filter %q, want %q", out, want)
	}
}
