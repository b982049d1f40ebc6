// Command sampan-demo is a tour of Sampan: it boots the machine, loads an
// image, serves a folder over HTTP from a container, and removes everything.
// It works in a home of its own and leaves nothing behind.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sampan/host/imagetest"
)

func main() {
	bin := flag.String("bin", "bin", "folder with sampan and sampand")
	var before []step
	flag.Func("before", "NAME=DURATION of a step that was done already (repeatable)", func(text string) error {
		name, value, _ := strings.Cut(text, "=")
		took, err := time.ParseDuration(value)
		before = append(before, step{name, took})
		return err
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	err := run(ctx, *bin, before)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// tour is one run of the demo.
type tour struct {
	ctx    context.Context // of the whole tour: one command at a time
	sampan string
	home   string
	times  []step
}

type step struct {
	name string
	took time.Duration
}

func run(ctx context.Context, bin string, before []step) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sampan-demo-")
	if err != nil {
		return err
	}
	t := &tour{ctx: ctx, sampan: filepath.Join(bin, "sampan"), home: filepath.Join(dir, "home"), times: before}
	defer func() {
		err = errors.Join(err, t.stopDaemon(), os.RemoveAll(dir))
		if err == nil {
			t.summary()
		}
	}()
	return t.walk(dir)
}

func (t *tour) walk(dir string) error {
	say("Sampan runs containers in a small virtual machine of its own.",
		"This tour uses a home of its own ("+t.home+") and removes it at the end.")

	archive, www, port, err := t.prepare(dir)
	if err != nil {
		return err
	}
	site := "http://127.0.0.1:" + port + "/"

	say("The first command starts the daemon and boots the machine:")
	if _, err := t.do("boot the machine", "machine", "start"); err != nil {
		return err
	}
	say("An image comes from a registry (pull) or from an archive of docker save:")
	if _, err := t.do("load an image", "load", "-i", archive); err != nil {
		return err
	}
	if _, err := t.do("", "images"); err != nil {
		return err
	}
	say("A web server that publishes a port and shares a folder of yours:")
	if _, err := t.do("run a server", "run", "-d", "--name", "web", "-p", "127.0.0.1:"+port+":80", "-v", www+":/www:ro", "hello"); err != nil {
		return err
	}
	if err := t.fetch("fetch a page", site, "Hello from the host"); err != nil {
		return err
	}
	say("Change the file on the host, and the container serves the change:")
	if err := os.WriteFile(filepath.Join(www, "index.html"), []byte("Changed on the host\n"), 0o644); err != nil {
		return err
	}
	if err := t.fetch("see a change", site, "Changed on the host"); err != nil {
		return err
	}
	if err := t.look(); err != nil {
		return err
	}
	say("Everything goes again:")
	if _, err := t.do("remove it", "rm", "-f", "web"); err != nil {
		return err
	}
	if _, err := t.do("", "rmi", "hello"); err != nil {
		return err
	}
	_, err = t.do("stop the machine", "machine", "stop")
	return err
}

// look shows ps, logs, exec and an exit code.
func (t *tour) look() error {
	if _, err := t.do("", "ps"); err != nil {
		return err
	}
	out, err := t.do("logs", "logs", "web")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "GET /") && !strings.Contains(out, "url:") {
		return fmt.Errorf("the server's log shows no request: %q", out)
	}
	say("A second process in the container:")
	if _, err := t.do("exec", "exec", "web", "sh", "-c", "echo I am $(id -un) on Linux $(uname -r); cat /www/index.html"); err != nil {
		return err
	}
	say("A container's exit code is the command's:")
	_, err = t.do("run and remove", "run", "--rm", "hello", "sh", "-c", "exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		return fmt.Errorf("exit code: got %v, want 3", err)
	}
	fmt.Println("(exit code 3)")
	return nil
}

// prepare makes the image, the folder to share, and picks a free port.
func (t *tour) prepare(dir string) (archive, www, port string, err error) {
	img, err := imagetest.Busybox("httpd", "-f", "-vv", "-p", "80", "-h", "/www")
	if err != nil {
		return "", "", "", err
	}
	archive, www = filepath.Join(dir, "hello.tar"), filepath.Join(dir, "my site")
	if err := imagetest.Archive(archive, "hello:latest", img); err != nil {
		return "", "", "", err
	}
	if err := os.Mkdir(www, 0o755); err != nil {
		return "", "", "", err
	}
	if err := os.WriteFile(filepath.Join(www, "index.html"), []byte("Hello from the host\n"), 0o644); err != nil {
		return "", "", "", err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", "", err
	}
	defer ln.Close()
	return archive, www, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port), nil
}

// do runs a sampan command, shows it and its output, and notes its time under
// name, unless that is empty.
func (t *tour) do(name string, args ...string) (string, error) {
	fmt.Println("$ sampan " + quote(args))
	var out bytes.Buffer
	cmd := exec.CommandContext(t.ctx, t.sampan, args...)
	cmd.Env = append(os.Environ(), "SAMPAN_HOME="+t.home)
	cmd.Stdout = io.MultiWriter(os.Stdout, &out)
	cmd.Stderr = io.MultiWriter(os.Stderr, &out)
	begin := time.Now()
	err := cmd.Run()
	t.note(name, begin)
	if err != nil {
		err = fmt.Errorf("sampan %s: %w", quote(args), err)
	}
	return out.String(), err
}

// fetch gets a page until it reads want, for 5 s: a share shows a change of the
// host within a second.
func (t *tour) fetch(name, url, want string) error {
	begin := time.Now()
	for {
		body, err := get(t.ctx, url)
		if err == nil && strings.TrimSpace(body) == want {
			t.note(name, begin)
			fmt.Printf("GET %s\n%s", url, body)
			return nil
		}
		if time.Since(begin) > 5*time.Second || t.ctx.Err() != nil {
			return fmt.Errorf("GET %s: got %q, %v; want %q", url, body, err, want)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.ctx.Done():
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func (t *tour) note(name string, begin time.Time) {
	if name != "" {
		t.times = append(t.times, step{name, time.Since(begin)})
	}
}

// stopDaemon ends the tour's daemon and waits for it.
func (t *tour) stopDaemon() error {
	b, err := os.ReadFile(filepath.Join(t.home, "sampand.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it never started
	} else if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("sampand.pid: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	for begin := time.Now(); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 60*time.Second {
			return fmt.Errorf("the daemon (pid %d) did not end in 60 s after SIGTERM", pid)
		}
	}
	return nil
}

func (t *tour) summary() {
	fmt.Println("\nDone. What each step took:")
	for _, s := range t.times {
		fmt.Printf("  %-18s %7.2f s\n", s.name, s.took.Seconds())
	}
}

func say(lines ...string) {
	fmt.Println()
	for _, l := range lines {
		fmt.Println("# " + l)
	}
}

// quote joins args as one would type them.
func quote(args []string) string {
	q := make([]string, len(args))
	for i, a := range args {
		q[i] = a
		if strings.ContainsAny(a, " $;'\"()") {
			q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(q, " ")
}
