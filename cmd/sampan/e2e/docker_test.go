package e2e_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The real docker client works over Sampan's socket.
func TestDockerClient(t *testing.T) {
	h := newHome(t)
	h.load(t) // also starts the daemon, which docker can't
	docker := func(args ...string) string { t.Helper(); return h.must(t, "docker", args...) }

	if v := docker("version"); !strings.Contains(v, "Server:") || !strings.Contains(v, "API version:") {
		t.Errorf("version: %s", v)
	}
	if out := docker("run", "--rm", "busybox", "echo", "hello"); out != "hello\n" {
		t.Errorf("run: %q", out)
	}
	if r := h.try(t, "to and fro", "docker", "run", "-i", "--rm", "busybox", "cat"); r.stdout != "to and fro" {
		t.Errorf("run -i: %+v", r)
	}
	for code, args := range map[int][]string{
		3: {"sh", "-c", "exit 3"}, 127: {"nosuchcommand"}, 126: {"/etc/passwd"},
	} {
		if r := h.try(t, "", "docker", append([]string{"run", "--rm", "busybox"}, args...)...); r.code != code {
			t.Errorf("run %v: exit code %d, want %d: %s", args, r.code, code, r.stderr)
		}
	}
	port := freePort(t)
	docker("run", "-d", "--name", "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "busybox", "httpd", "-f", "-p", "80", "-h", "/etc")
	eventually(t, 10*time.Second, "the port answers", func() bool {
		_, err := get(fmt.Sprintf("http://127.0.0.1:%d/passwd", port))
		return err == nil
	})
	if out := docker("ps"); !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d->80/tcp", port)) || !strings.Contains(out, "web") {
		t.Errorf("ps: %s", out)
	}
	if out := docker("exec", "web", "cat", "/etc/hostname"); len(out) != 13 {
		t.Errorf("exec: %q", out)
	}
	if out := docker("inspect", "-f", "{{.State.Status}} {{.Config.Image}}", "web"); out != "running busybox\n" {
		t.Errorf("inspect: %q", out)
	}
	docker("stop", "-t", "1", "web")
	docker("rm", "web")
	if out := docker("images", "--format", "{{.Repository}}:{{.Tag}}"); out != "busybox:latest\n" {
		t.Errorf("images: %q", out)
	}

	docker("run", "-d", "--name", "talk", "busybox", "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.2; done")
	follow := h.command(t, "docker", "logs", "-f", "talk")
	pipe, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		n++
		if want := fmt.Sprintf("line %d", n); lines.Text() != want {
			t.Errorf("logs -f: %q, want %q", lines.Text(), want)
		}
	}
	if err := follow.Wait(); err != nil || n != 3 {
		t.Errorf("logs -f: %d lines, %v", n, err)
	}
	docker("rm", "talk")
}

// terminal is a tmux session of its own server.
type terminal struct {
	t      *testing.T
	h      *home
	socket string
}

func newTerminal(t *testing.T, h *home) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatal("no tmux: run `make deps`")
	}
	// A socket of its own: a server that is ending takes new ones down with it.
	h.terminals++
	w := &terminal{t, h, filepath.Join(filepath.Dir(h.dir), fmt.Sprint("tmux", h.terminals))}
	w.tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "sh")
	t.Cleanup(func() { w.h.try(t, "", "tmux", "-S", w.socket, "kill-server") })
	return w
}

func (w *terminal) tmux(args ...string) string {
	w.t.Helper()
	return w.h.must(w.t, "tmux", append([]string{"-S", w.socket}, args...)...)
}

// typ types text; a trailing Enter is its own key.
func (w *terminal) typ(text string) {
	w.t.Helper()
	w.tmux("send-keys", "-l", text)
	w.tmux("send-keys", "Enter")
}

// sees waits until the screen shows want.
func (w *terminal) sees(want string) {
	w.t.Helper()
	var screen string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if screen = w.tmux("capture-pane", "-p"); strings.Contains(screen, want) {
			return
		}
	}
	w.t.Fatalf("the terminal does not show %q:\n%s", want, screen)
}

// run -it gives a working terminal: size, its change, Ctrl-C and the exit code,
// with sampan and with the real client.
func TestTerminal(t *testing.T) {
	h := newHome(t)
	h.load(t)
	h.record()
	clients := []string{filepath.Join(files.bin, "sampan"), filepath.Join(files.bin, "docker")}
	for i, client := range clients {
		w := newTerminal(t, h)
		w.typ(fmt.Sprintf("%s run -it --rm --name term%d busybox; echo left with $?", client, i))
		w.sees("/ #")
		w.typ("stty size; tty; echo in $((6*7))")
		w.sees("30 100")
		w.sees("/dev/pts/0")
		w.sees("in 42")
		w.tmux("resize-window", "-x", "80", "-y", "24")
		w.typ("sleep 0.3; clear; stty size")
		w.sees("24 80")
		// Ctrl-C reaches the foreground process, not the client.
		w.typ("echo star''ted; sleep 1000")
		w.sees("started")
		w.tmux("send-keys", "C-c")
		w.typ("echo code $?")
		w.sees("code 130")
		w.typ("exit 7")
		w.sees("left with 7")
		w.tmux("kill-server")
	}
	// exec -it: leaving the second shell leaves the container running; the
	// detach keys leave the client.
	h.sampan(t, "run", "-dit", "--name", "main", "busybox")
	w := newTerminal(t, h)
	sampan := clients[0]
	w.typ(sampan + " exec -it main sh; echo left with $?")
	w.sees("/ #")
	w.typ("exit 5")
	w.sees("left with 5")
	w.typ("clear; " + sampan + " attach main")
	w.typ("echo on $((40+2))")
	w.sees("on 42")
	w.tmux("send-keys", "C-p", "C-q")
	w.sees("read escape sequence") // what is typed before still goes to the client
	w.typ("echo detached $((1+1))")
	w.sees("detached 2")
	if out := h.sampan(t, "ps"); !strings.Contains(out, "main") {
		t.Errorf("detaching ended the container: %s", out)
	}
	h.sampan(t, "rm", "-f", "main")
}

// Ctrl-C at a terminal calls off a start that waits for the machine to boot: at
// once, with 130, and nothing is left of the container.
func TestInterruptedBoot(t *testing.T) {
	h := newHome(t)
	h.load(t)
	for _, flags := range []string{"--rm", "-it --rm"} {
		w := newTerminal(t, h)
		w.typ("sampan run " + flags + " busybox echo it ra''n; echo left with $?")
		w.sees("Starting the virtual machine ...")
		w.tmux("send-keys", "C-c")
		w.sees("left with 130")
		if screen := w.tmux("capture-pane", "-p"); strings.Contains(screen, "it ran") {
			t.Errorf("the container ran:\n%s", screen)
		}
		if ids := h.sampan(t, "ps", "-aq"); ids != "" {
			t.Errorf("run %s: left behind: %q", flags, ids)
		}
		h.sampan(t, "machine", "stop")
	}
	if out := h.sampan(t, "run", "--rm", "busybox", "echo", "next"); out != "next\n" {
		t.Errorf("the next run prints %q", out)
	}
}

// The home's mode keeps other users out even when umask would not.
func TestHomeMode(t *testing.T) {
	h := newHome(t)
	if err := os.MkdirAll(h.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "ps")
	if fi, err := os.Stat(h.dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// A program that starts containers for its tests finds Docker where Sampan is. The
// reaper is off: its image comes from a registry far away.
func TestTestcontainers(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "--rm", "busybox", "true") // boots
	// Where the tests run in a container themselves, it takes the host for another.
	h.env = append(h.env, "TESTCONTAINERS_RYUK_DISABLED=true", "TESTCONTAINERS_HOST_OVERRIDE=localhost")
	if out, err := h.command(t, filepath.Join(files.bin, "testcontainers.test"), "-test.v").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out := h.sampan(t, "ps", "-aq") + h.sampan(t, "network", "ls", "-q", "-f", "type=custom"); out != "" {
		t.Errorf("left: %s", out)
	}
}
