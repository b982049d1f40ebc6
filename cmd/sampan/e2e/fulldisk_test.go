package e2e_test

import (
	"os"
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
		t.Skip("only root can mount a small file system: run the tests as root")
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
	h.sampan(t, "create", "--name", "before", "busybox", "true")
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
