package e2e_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inContainer is how the real docker client is run in a container: what to
// mount, and its command.
func inContainer(t *testing.T) (mount string, command []string) {
	t.Helper()
	tree := filepath.Join(files.dir, "docker") // Debian's, with its libraries
	if _, err := os.Stat(tree); err == nil {
		return tree + ":/d:ro", []string{"/d/usr/lib64/ld-linux-x86-64.so.2", "--library-path", "/d/usr/lib/x86_64-linux-gnu", "/d/usr/bin/docker"}
	}
	return filepath.Join(files.bin, "docker") + ":/bin/docker:ro", []string{"docker"}
}

// /var/run/docker.sock as a source is Sampan's own API: the real client works in
// a container, by that name and by the socket's own, with streams in both
// directions. It is for root there, as Docker's is.
func TestDockerSocket(t *testing.T) {
	h := newHome(t)
	h.load(t)
	mount, docker := inContainer(t)
	h.must(t, "docker", "run", "-d", "--name", "manager", "-v", "/var/run/docker.sock:/var/run/docker.sock",
		"--mount", "type=bind,src="+h.dir+"/docker.sock,dst=/own.sock", "-v", mount, "busybox", "sleep", "1000")
	inside := func(stdin string, args ...string) result {
		return h.try(t, stdin, "sampan", append(append([]string{"exec", "-i", "manager"}, docker...), args...)...)
	}
	const want = "manager\n"
	for _, args := range [][]string{
		{"ps", "--format", "{{.Names}}"},
		{"-H", "unix:///own.sock", "ps", "--format", "{{.Names}}"},
	} {
		if r := inside("", args...); r.stdout != want || r.code != 0 {
			t.Errorf("%q: %+v, want %q", args, r, want)
		}
	}
	words := strings.Repeat("words\n", 20_000)
	if r := inside(words, "run", "-i", "--rm", "busybox", "cat"); r.stdout != words || r.code != 0 {
		t.Errorf("%d of %d bytes came back, code %d: %s", len(r.stdout), len(words), r.code, r.stderr)
	}
	r := h.try(t, "", "sampan", "exec", "-u", "1000", "manager", "sh", "-c", "ls -ln /var/run/docker.sock; "+strings.Join(docker, " ")+" ps")
	if !strings.HasPrefix(r.stdout, "srw-rw----    1 0        0 ") || r.code == 0 || !strings.Contains(r.stderr, "permission denied") {
		t.Errorf("as uid 1000: %+v", r)
	}
	// The container ends itself, whose connection that cuts.
	inside("", "rm", "-f", "manager")
	eventually(t, 30*time.Second, "the container is removed", func() bool { return h.sampan(t, "ps", "-aq") == "" })
}

// A UNIX socket of the host works in a container for any user of it, an
// ssh-agent's as well, and no longer than the container; what can't be relayed
// is refused by name.
func TestHostSockets(t *testing.T) {
	h := newHome(t)
	h.load(t)
	dir := t.TempDir()
	agent := filepath.Join(dir, "ssh agent ä.sock")
	ssh := h.command(t, "ssh-agent", "-D", "-a", agent)
	if err := ssh.Start(); err != nil {
		t.Fatal(err)
	}
	defer ssh.Wait()
	defer ssh.Process.Kill()
	eventually(t, 10*time.Second, "an agent's socket", func() bool { _, err := os.Stat(agent); return err == nil })
	h.must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "key of the host", "-f", filepath.Join(dir, "key"))
	h.env = []string{"SSH_AUTH_SOCK=" + agent}
	if r := h.try(t, "", "ssh-add", "-q", filepath.Join(dir, "key")); r.code != 0 {
		t.Fatalf("ssh-add: %+v", r)
	}
	// The host's own ssh-add, with its own libraries.
	add := "/usr-of-host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /usr-of-host/lib/x86_64-linux-gnu /usr-of-host/bin/ssh-add -L"
	for _, uid := range []string{"0", "1000"} {
		got := h.sampan(t, "run", "--rm", "-u", uid, "-v", agent+":/ssh-agent:ro", "-e", "SSH_AUTH_SOCK=/ssh-agent", "-v", "/usr:/usr-of-host:ro", "busybox", "sh", "-c", add)
		if !strings.HasSuffix(got, " key of the host\n") {
			t.Errorf("uid %s: keys %q", uid, got)
		}
	}
	if got := h.sampan(t, "run", "--rm", "--ssh", "-u", "1000", "-v", "/usr:/usr-of-host:ro", "busybox", "sh", "-c", add); !strings.HasSuffix(got, " key of the host\n") {
		t.Errorf("--ssh: keys %q", got)
	}
	// With the container its connections end on the host.
	ln, err := net.Listen("unix", filepath.Join(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h.sampan(t, "run", "-d", "--name", "holder", "-v", filepath.Join(dir, "held")+":/s", "-v", "/usr:/usr-of-host:ro", "-e", "SSH_AUTH_SOCK=/s", "busybox", "sh", "-c", add)
	ln.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second))
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	h.sampan(t, "rm", "-f", "holder")
	if b, err := io.ReadAll(conn); len(b) == 0 || err != nil { // the request, and the end
		t.Errorf("read %q, %v", b, err)
	}

	log, err := net.ListenPacket("unixgram", filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := h.try(t, "", "sampan", "run", "--rm", "-v", filepath.Join(dir, "log")+":/dev/log", "busybox", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "a datagram socket can't be relayed") {
		t.Errorf("a datagram socket: %+v", r)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(agent, 0); err != nil {
			t.Fatal(err)
		}
		r := h.try(t, "", "sampan", "run", "--rm", "-v", agent+":/s", "busybox", "true")
		// 126: what clients make of these words in the error of a start.
		if r.code != 126 || !strings.Contains(r.stderr, "permission denied") {
			t.Errorf("a socket that is not the user's: %+v", r)
		}
	}
	if ids := bytes.TrimSpace([]byte(h.sampan(t, "ps", "-q"))); len(ids) > 0 {
		t.Errorf("left running: %s", ids)
	}
}
