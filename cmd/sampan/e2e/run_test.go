package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sampan/kernel"
)

// 256 MB through a container's stdin and stdout arrive as they were.
func TestBigStdio(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	const size = 256 << 20
	in, out := sha256.New(), sha256.New()
	cmd := h.command(t, "sampan", "run", "-i", "--rm", "busybox", "cat")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), in)
	count := &counter{w: out}
	cmd.Stdout = count
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	t.Logf("%d MiB there and back in %s", size>>20, time.Since(begin).Round(time.Millisecond))
	if count.n != size || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Errorf("%d of %d bytes came back, checksums %x and %x", count.n, size, in.Sum(nil), out.Sum(nil))
	}
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// Without a terminal a signal to the client goes to the container, and the
// client ends with the container's code.
func TestSignalProxy(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	cmd := h.command(t, "sampan", "run", "--rm", "busybox", "sh", "-c", `trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("got %q, %v; want ready", lines.Text(), lines.Err())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "caught" {
		t.Errorf("got %q, %v; want caught", lines.Text(), lines.Err())
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if ids := h.sampan(t, "ps", "-aq"); ids != "" {
		t.Errorf("left behind: %q", ids)
	}

	// Unless that is not wanted: it ends the client alone.
	cmd = h.command(t, "sampan", "run", "--rm", "--name", "own", "--sig-proxy=false", "busybox", "sh", "-c", `trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done`)
	if stdout, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if lines := bufio.NewScanner(stdout); !lines.Scan() {
		t.Fatal(lines.Err())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if out := h.sampan(t, "inspect", "-f", "{{.State.Running}}", "own"); out != "true\n" {
		t.Errorf("--sig-proxy=false: running: %s", out)
	}
	h.sampan(t, "rm", "-f", "own")
}

// A container that ends by SIGTERM ends its client with 143.
func TestKilled143(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	cmd := h.command(t, "sampan", "run", "--rm", "--name", "sleeper", "busybox", "sh", "-c", "echo ready; exec sleep 100")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if lines := bufio.NewScanner(stdout); !lines.Scan() {
		t.Fatal(lines.Err())
	}
	// PID 1 ignores signals it has no handler for: as with Docker, only an init
	// or KILL ends it.
	h.sampan(t, "kill", "-s", "KILL", "sleeper")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	r := h.try(t, "", "sampan", "run", "--rm", "--init", "busybox", "sh", "-c", "kill -TERM $$; sleep 10")
	if r.code != 143 {
		t.Errorf("exit code %d, want 143: %s", r.code, r.stderr)
	}
}

// What a container writes into a shared folder belongs to the user on the host,
// whoever wrote it, and the container sees its own owner.
func TestShareOwnership(t *testing.T) {
	h := newHome(t)
	h.load(t)
	dir := t.TempDir()
	for _, uid := range []string{"0", "1000"} {
		h.sampan(t, "run", "--rm", "-u", uid+":"+uid, "-v", dir+":/dir", "busybox", "sh", "-c", "umask 022; echo by "+uid+" > /dir/"+uid+" && mkdir /dir/d"+uid+" && echo x > /dir/d"+uid+"/x")
		for _, name := range []string{uid, "d" + uid, "d" + uid + "/x"} {
			ownedByUs(t, filepath.Join(dir, name))
		}
		got := h.sampan(t, "run", "--rm", "-v", dir+":/dir", "busybox", "stat", "-c", "%u:%g", "/dir/"+uid)
		if strings.TrimSpace(got) != uid+":"+uid {
			t.Errorf("written by uid %s, belongs to %s in the container", uid, got)
		}
	}
	// Any uid in the container works with the user's own files as the user could.
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []string{"0", "1000"} {
		if got := h.sampan(t, "run", "--rm", "-u", uid, "-v", dir+":/dir", "busybox", "sh", "-c", "cat /dir/mine && echo more >> /dir/mine"); !strings.HasPrefix(got, "mine\n") {
			t.Errorf("uid %s read %q", uid, got)
		}
	}
	// chown and chmod are remembered, and the host's owner stays.
	h.sampan(t, "run", "--rm", "-v", dir+":/dir", "busybox", "sh", "-c", "chown 33:44 /dir/mine && chmod 640 /dir/mine")
	if got := h.sampan(t, "run", "--rm", "-v", dir+":/dir", "busybox", "stat", "-c", "%u:%g %a", "/dir/mine"); got != "33:44 640\n" {
		t.Errorf("after chown and chmod: %q", got)
	}
}

// ownedByUs checks that a file of a container is the user's on the host.
func ownedByUs(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		t.Errorf("%s belongs to %d:%d on the host, want %d:%d", path, st.Uid, st.Gid, os.Geteuid(), os.Getegid())
	}
}

// A symlink in a shared folder never leads out of it on the host.
func TestShareSymlinks(t *testing.T) {
	h := newHome(t)
	h.load(t)
	dir := t.TempDir()
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got := h.sampan(t, "run", "--rm", "-h", "inside", "-v", dir+":/dir", "busybox", "cat", "/dir/link")
	if got != "inside\n" {
		t.Errorf("the link leads to %q, not to the container's own file", got)
	}
	if r := h.try(t, "", "sampan", "run", "--rm", "-v", h.dir+":/dir", "busybox", "ls", "/dir"); r.code != 125 {
		t.Errorf("SAMPAN_HOME could be mounted: %+v", r)
	}
}

// A machine that can't boot gives exit code 125, the stage, and the console.
func TestNoBoot(t *testing.T) {
	h := newHome(t)
	guest := filepath.Join(t.TempDir(), "guest")
	if err := os.CopyFS(guest, os.DirFS(files.guest)); err != nil {
		t.Fatal(err)
	}
	h.env = []string{"SAMPAN_GUEST=" + guest}
	h.load(t) // needs no machine

	damage := func(name string, change func([]byte) []byte) {
		path := filepath.Join(guest, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A damaged file is noticed before it boots.
	damage(kernel.InitrdFile, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	r := h.try(t, "", "sampan", "run", "--rm", "busybox", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "sha256") {
		t.Errorf("damaged initrd: got %+v; want 125 and the digest", r)
	}
	// A whole bundle without an agent panics: the console's tail says so.
	empty, err := kernel.PackInitrd(emptyInitrd())
	if err != nil {
		t.Fatal(err)
	}
	damage(kernel.InitrdFile, func([]byte) []byte { return empty })
	reseal(t, guest)
	r = h.try(t, "", "sampan", "run", "--rm", "busybox", "true")
	if r.code != 125 || !strings.Contains(r.stderr, `stage "agent"`) || !strings.Contains(r.stderr, "Kernel panic") {
		t.Errorf("no agent: got %+v; want 125, the stage and the console", r)
	}
	// A mended bundle boots without further ado.
	h.stopDaemon(t)
	h.env = nil
	h.sampan(t, "run", "--rm", "busybox", "true")
}

// No QEMU, or one that is too old: one line that says what to do.
func TestNoQEMU(t *testing.T) {
	h := newHome(t)
	h.load(t)
	h.stopDaemon(t)
	dir := t.TempDir()
	h.env = []string{"PATH=" + dir}
	check := func(what string, words ...string) {
		t.Helper()
		r := h.try(t, "", "sampan", "run", "--rm", "busybox", "true")
		if r.code != 125 {
			t.Errorf("%s: exit code %d: %s", what, r.code, r.stderr)
		}
		for _, w := range words {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: the error lacks %q: %s", what, w, r.stderr)
			}
		}
		if n := strings.Count(strings.TrimSpace(r.stderr), "\n"); n > 2 { // Docker's own hint follows
			t.Errorf("%s: %d lines: %s", what, n, r.stderr)
		}
	}
	check("no QEMU", "qemu-system-x86_64", "apt install qemu-system-x86")
	old := "#!/bin/sh\necho 'QEMU emulator version 6.2.0 (Debian 1:6.2)'\n"
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(old), 0o755); err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sh, filepath.Join(dir, "sh")); err != nil {
		t.Fatal(err)
	}
	check("old QEMU", "6.2.0", "7.2")
}

// A container that takes no notice of Ctrl-C does not hold its client: the
// third one leaves, and the container goes on.
func TestThirdInterrupt(t *testing.T) {
	h := newHome(t)
	h.load(t)
	cmd := h.command(t, "sampan", "run", "--rm", "--name", "deaf", "busybox", "sh", "-c", "trap '' INT; echo ready; while :; do sleep 1; done")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if lines := bufio.NewScanner(stdout); !lines.Scan() {
		t.Fatal(lines.Err())
	}
	for range 3 {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // or the kernel makes one of them
	}
	begin := time.Now()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || time.Since(begin) > 5*time.Second {
		t.Errorf("exit code %d after %s, want 130 at once: %s", code, time.Since(begin), stderr.Bytes())
	}
	if !strings.Contains(stderr.String(), "got 3 SIGTERM/SIGINTs, forcefully exiting") {
		t.Errorf("stderr: %s", stderr.Bytes())
	}
	if ps := h.sampan(t, "ps"); !strings.Contains(ps, "deaf") {
		t.Errorf("the container ended: %s", ps)
	}
	h.sampan(t, "rm", "-f", "deaf")
}
