package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machinePid is the pid of the home's QEMU.
func (h *home) machinePid(t testing.TB) int {
	t.Helper()
	var s struct {
		State string
		Pid   int
	}
	if err := json.Unmarshal([]byte(h.sampan(t, "machine", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	if s.Pid == 0 {
		t.Fatalf("no machine runs: %+v", s)
	}
	return s.Pid
}

// kill -9 of QEMU: reported at once, the next command boots again, and images,
// volumes and stopped containers are still there.
func TestKillQEMU(t *testing.T) {
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "--name", "stopped", "-v", "data:/data", "busybox", "sh", "-c", "echo kept > /data/file; echo mine > /file; sync")
	cmd := h.command(t, "sampan", "run", "--name", "running", "busybox", "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the container runs", func() bool {
		return strings.Contains(h.sampan(t, "ps"), "running")
	})
	pid := h.machinePid(t)
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the client noticed after %s, want 5 s at most", took)
	}
	if code := cmd.ProcessState.ExitCode(); code == 0 {
		t.Error("the client of the lost container ended with 0")
	}
	if s := h.sampan(t, "machine", "status"); !strings.Contains(s, "ended by itself") {
		t.Errorf("the status does not tell of the loss: %s", s)
	}
	if got := h.sampan(t, "run", "--rm", "-v", "data:/data", "busybox", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("the volume has %q", got)
	}
	ps := h.sampan(t, "ps", "-a")
	for _, name := range []string{"stopped", "running"} {
		if !strings.Contains(ps, name) {
			t.Errorf("container %s is gone: %s", name, ps)
		}
	}
	// A stopped container starts again with the files it had.
	h.sampan(t, "start", "-a", "stopped")
	if h.machinePid(t) == pid {
		t.Error("the same machine")
	}
}

// kill -9 of sampand: no orphan is left, the next command works, and what was
// deleted then and later is the host's again.
func TestKillDaemon(t *testing.T) {
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "-d", "--name", "one", "-v", "data:/data", "busybox", "sh", "-c",
		// Of an open file the kernel deletes only the name.
		"echo kept > /data/file; exec 3> /data/gone; dd if=/dev/zero bs=1M count=64 >&3; rm /data/gone; sync; echo synced; sleep 1000")
	eventually(t, 20*time.Second, "the file is synced", func() bool {
		return strings.Contains(h.sampan(t, "logs", "one"), "synced")
	})
	if n := h.allocated(t); n < 64<<20 {
		t.Errorf("the disk takes %d bytes, less than was written to it", n)
	}
	qemu, daemon := h.machinePid(t), h.pid(t)
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !waitGone(daemon, 10*time.Second) || !waitGone(qemu, 10*time.Second) {
		t.Fatal("sampand or its QEMU still runs")
	}
	if ps := h.sampan(t, "ps", "-a"); !strings.Contains(ps, "Exited (255)") {
		t.Errorf("the container's end is not told: %s", ps)
	}
	if got := h.sampan(t, "run", "--rm", "-v", "data:/data", "busybox", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("the volume has %q", got)
	}
	returned := func(how string) {
		t.Helper()
		eventually(t, time.Minute, "what was deleted "+how+" is the host's", func() bool { return h.allocated(t) < 48<<20 })
	}
	returned("when the daemon was killed")
	h.sampan(t, "start", "one")
	if !nightly() {
		h.sampan(t, "rm", "-f", "one")
		return
	}
	eventually(t, 20*time.Second, "64 MiB are written again", func() bool { return h.allocated(t) >= 64<<20 })
	h.sampan(t, "rm", "-f", "one")
	returned("with the container")
}

// allocated is how many bytes the home's data disk takes on the host.
func (h *home) allocated(t testing.TB) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(h.dir, "data.img"), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// Two homes run side by side and don't see each other; each has its own lock,
// socket and permissions.
func TestTwoHomes(t *testing.T) {
	onceAsUser(t)
	a, b := newHome(t), newHome(t)
	a.load(t)
	b.load(t)
	a.sampan(t, "run", "-d", "--name", "same", "busybox", "sleep", "1000")
	b.sampan(t, "run", "-d", "--name", "same", "busybox", "sleep", "1000")
	if a.machinePid(t) == b.machinePid(t) || a.pid(t) == b.pid(t) {
		t.Error("the homes share a machine or a daemon")
	}
	a.sampan(t, "rm", "-f", "same")
	if ps := b.sampan(t, "ps"); !strings.Contains(ps, "same") {
		t.Errorf("the other home's container is gone: %s", ps)
	}
	for path, want := range map[string]os.FileMode{"": 0o700, "docker.sock": 0o600} {
		fi, err := os.Stat(filepath.Join(a.dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("mode of %q is %o, want %o", path, fi.Mode().Perm(), want)
		}
	}
}

// Many clients at once start one daemon.
func TestStartRace(t *testing.T) {
	h := newHome(t)
	errs := make(chan string, 8)
	for range cap(errs) {
		go func() {
			cmd := h.command(t, "sampan", "ps")
			out, err := cmd.CombinedOutput()
			if err != nil {
				errs <- err.Error() + ": " + string(out)
				return
			}
			errs <- ""
		}()
	}
	for range cap(errs) {
		if e := <-errs; e != "" {
			t.Error(e)
		}
	}
}

// SIGTERM ends the daemon in order; a command given at once waits for that and
// starts the next one, which brings back what its policy says.
func TestTermAndGoOn(t *testing.T) {
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "-d", "--name", "back", "--restart", "unless-stopped", "busybox", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
	h.sampan(t, "run", "-d", "--name", "gone", "busybox", "sleep", "1000")
	old := h.pid(t)
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "ps")
	if !waitGone(old, 60*time.Second) {
		t.Fatal("the daemon runs on after SIGTERM")
	}
	eventually(t, 60*time.Second, "the container is back", func() bool {
		return strings.Contains(h.sampan(t, "ps"), "back")
	})
	if ps := h.sampan(t, "ps"); strings.Contains(ps, "gone") {
		t.Errorf("a container without a policy came back: %s", ps)
	}
	if code := h.sampan(t, "inspect", "-f", "{{.RestartCount}}", "back"); code != "0\n" {
		t.Errorf("the end of the daemon counted as a restart: %s", code)
	}
}
