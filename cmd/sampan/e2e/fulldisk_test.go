package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallEnv names a small file system that root has made for the second run.
const smallEnv = "SAMPAN_E2E_SMALL"

// smallSize holds an image, a data disk and what fills it, in MiB.
const smallSize = 160

// mountSmall makes a small file system for the test's duration.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(smallSize)+"m"); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		// A process that has just ended may hold it for another moment.
		if err := syscall.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the small tmpfs: %v", err)
		}
	})
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// smallDir is a folder on a small file system.
func smallDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(smallEnv); dir != "" {
		return dir
	}
	if os.Geteuid() != 0 {
		skip(t, "only root can mount a small file system: run the tests as root")
	}
	dir := filepath.Join(t.TempDir(), "small")
	mountSmall(t, dir)
	return dir
}

// The host's disk is full: every command says so, or works, none hangs, the
// machine is not paused; and when there is space again everything works again,
// with what was synced before.
func TestFullHostDisk(t *testing.T) {
	onceAsUser(t)
	dir := smallDir(t)
	h := newHome(t)
	h.dir = filepath.Join(dir, "home")
	t.Cleanup(func() { h.stopDaemon(t); os.RemoveAll(h.dir) })
	ref := faultImage(t)
	h.load(t)
	h.sampan(t, "run", "--rm", "-v", "data:/data", "busybox", "sh", "-c", "echo kept > /data/kept && sync")
	if r := h.try(t, "", "sampan", "create", "--name", "before", "busybox", "true"); r.code != 0 || !strings.Contains(r.stderr, "nearly full") {
		t.Errorf("create with less than 2 GiB left: got %+v; want a warning", r)
	}
	h.sampan(t, "run", "-d", "--name", "writer", "-v", "data:/data", "busybox", "sleep", "100000")

	ballast := filepath.Join(dir, "ballast")
	fill := func() {
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for b := make([]byte, 64<<10); len(b) > 0; {
			if _, err := f.Write(b); err != nil {
				b = b[:len(b)/2] // to the last byte
			}
		}
	}
	fill()
	for _, args := range [][]string{
		{"pull", ref},
		{"create", "--name", "meanwhile", "busybox", "true"},
		{"volume", "create", "meanwhile"},
	} {
		r := h.try(t, "", "sampan", args...)
		if r.code == 0 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("%q with a full disk: got %+v; want that no space is left", args, r)
		}
	}
	// The machine runs: what a container writes fails, or ends up in memory and
	// is refused when it is synced.
	r := h.try(t, "", "sampan", "exec", "writer", "dd", "if=/dev/zero", "of=/data/big", "bs=1M", "count=64", "conv=fsync")
	t.Logf("64 MiB written to a full disk: %+v", r)
	if r.code == 0 {
		t.Error("64 MiB were synced to a full disk")
	}
	// So does the file system's own journal, whereupon it turns read-only.
	r = h.try(t, "", "sampan", "exec", "writer", "sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); mkdir /data/d$i || break; done; sync")
	t.Logf("300 folders made and synced on a full disk: %+v", r)
	if s := h.sampan(t, "machine", "status"); strings.Contains(s, "paused") || !strings.Contains(s, "used") {
		t.Errorf("the machine does not answer: %s", s)
	}
	for range 2 { // the second one may find a disk that has failed
		begin := time.Now()
		r = h.try(t, "", "sampan", "run", "--rm", "busybox", "true")
		t.Logf("run with a full disk, after %s: %+v", time.Since(begin).Round(time.Millisecond), r)
		if r.code != 0 && !strings.Contains(r.stderr, "no space left") && !strings.Contains(r.stderr, "full") {
			t.Errorf("run with a full disk: got %+v; want that it says why", r)
		}
	}
	names := strings.Fields(h.sampan(t, "ps", "-a", "--format", "{{.Names}}"))
	if slices.Sort(names); !slices.Equal(names, []string{"before", "writer"}) {
		t.Errorf("containers: %q, want those that were there before", names)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// The data disk may have failed: nobody ends the container that runs for that.
	r = h.try(t, "", "sampan", "run", "--rm", "busybox", "true")
	t.Logf("run with space again, while another runs: %+v", r)
	if r.code != 0 && !strings.Contains(r.stderr, "sampan machine stop") {
		t.Errorf("run with space again: got %+v; want that it works or says what to do", r)
	}
	h.sampan(t, "rm", "-f", "writer")
	if got := h.sampan(t, "run", "--rm", "-v", "data:/data", "busybox", "sh", "-c", "cat /data/kept; rm -f /data/big; echo more > /data/more && sync && cat /data/more"); got != "kept\nmore\n" {
		t.Errorf("with space again: %q", got)
	}
	h.sampan(t, "start", "-a", "before")
	h.sampan(t, "pull", "-q", ref)
	h.sampan(t, "run", "--rm", ref, "true")
	h.untidy(t)
}

// Containers have filled the data disk to the last block: others still start,
// run, end and are removed, since the agent has blocks of its own; and removing
// what fills it makes everything as it was.
func TestFullDataDisk(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "config.toml"), []byte("[machine]\ndisk = \"1GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.load(t)
	h.sampan(t, "run", "--rm", "-v", "kept:/kept", "busybox", "sh", "-c", "echo kept > /kept/file && sync")
	h.sampan(t, "run", "-d", "--name", "on", "busybox", "sleep", "100000")
	r := h.try(t, "", "sampan", "run", "--rm", "-v", "big:/big", "busybox", "dd", "if=/dev/zero", "of=/big/fill", "bs=1M")
	if r.code == 0 || !strings.Contains(r.stderr, "No space left on device") {
		t.Errorf("the disk was not filled: %+v", r)
	}
	// What is left in small pieces goes as well.
	h.sampan(t, "exec", "on", "sh", "-c", "i=0; while echo x 2>&- > /small$i; do i=$((i+1)); done; true")
	for i := range 3 {
		if got := h.sampan(t, "run", "--rm", "-v", "kept:/kept", "busybox", "cat", "/kept/file"); got != "kept\n" {
			t.Errorf("run %d on a full disk printed %q", i, got)
		}
		if got := h.sampan(t, "exec", "on", "echo", "exec"); got != "exec\n" {
			t.Errorf("exec %d on a full disk printed %q", i, got)
		}
		name := "full" + strconv.Itoa(i)
		if r := h.try(t, "", "sampan", "run", "--name", name, "busybox", "sh", "-c", "echo told; cat /dev/zero > /file"); r.code != 1 || r.stdout != "told\n" || !strings.Contains(r.stderr, "No space left on device") {
			t.Errorf("a container that writes to a full disk: %+v", r)
		}
		if got := h.sampan(t, "logs", name); !strings.HasPrefix(got, "told\n") {
			t.Errorf("its log: %q", got)
		}
		h.sampan(t, "start", name)
		h.sampan(t, "stop", "-t", "0", name)
		if i == 0 {
			h.sampan(t, "container", "prune", "-f")
		} else {
			h.sampan(t, "rm", name)
		}
	}
	h.sampan(t, "volume", "rm", "big")
	h.sampan(t, "rm", "-f", "on")
	// Deleting goes on after it was acknowledged.
	eventually(t, 60*time.Second, "there is space again", func() bool {
		return h.try(t, "", "sampan", "run", "--rm", "-v", "kept:/kept", "busybox", "sh", "-c", "dd if=/dev/zero of=/kept/new bs=1M count=200 conv=fsync 2>&- && cat /kept/file").stdout == "kept\n"
	})
	h.stopDaemon(t)
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", filepath.Join(h.dir, "data.img")).CombinedOutput(); err != nil {
		t.Errorf("the file system is damaged: %v\n%s", err, out)
	}
}
