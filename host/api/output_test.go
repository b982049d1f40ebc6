package api_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func (d *daemon) create(cfg container.Config, host container.HostConfig) string {
	d.t.Helper()
	cfg.Image = "img"
	c, err := d.client.ContainerCreate(d.t.Context(), client.ContainerCreateOptions{Config: &cfg, HostConfig: &host})
	if err != nil {
		d.t.Fatal(err)
	}
	return c.ID
}

func (d *daemon) attach(id string) client.ContainerAttachResult {
	d.t.Helper()
	a, err := d.client.ContainerAttach(d.t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		d.t.Fatal(err)
	}
	a.Conn.SetDeadline(time.Now().Add(patience))
	d.t.Cleanup(a.Close)
	return a
}

func (d *daemon) startID(id string) {
	d.t.Helper()
	if _, err := d.client.ContainerStart(d.t.Context(), id, client.ContainerStartOptions{}); err != nil {
		d.t.Fatal(err)
	}
}

func TestAttachBeforeStart(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"both"}}, container.HostConfig{})
	a, b := d.attach(id), d.attach(id)
	d.startID(id)
	for _, c := range []client.ContainerAttachResult{a, b} {
		var out, errs bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errs, c.Reader); err != nil || out.String() != "out\n" || errs.String() != "err\n" {
			t.Errorf("%q, %q, %v", out.String(), errs.String(), err)
		}
	}
}

// A terminal's output is raw; the detach keys leave it and the container runs
// on; a second client finds it.
func TestTerminal(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"cat"}, Tty: true, OpenStdin: true}, container.HostConfig{})
	a := d.attach(id)
	d.startID(id)
	if m, ok := a.MediaType(); m != "application/vnd.docker.raw-stream" {
		t.Errorf("media type %q, %v", m, ok)
	}
	io.WriteString(a.Conn, "hello")
	buf := make([]byte, 5)
	if _, err := io.ReadFull(a.Reader, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}
	if _, err := d.client.ContainerResize(t.Context(), id, client.ContainerResizeOptions{Height: 30, Width: 100}); err != nil {
		t.Error(err)
	}
	if g := d.machine.running(); len(g.resized) != 1 || g.resized[0] != "30x100" {
		t.Errorf("resized %q", g.resized)
	}
	io.WriteString(a.Conn, "\x10\x11")
	if rest, err := io.ReadAll(a.Reader); len(rest) != 0 || err != nil {
		t.Errorf("after the detach keys: %q, %v", rest, err)
	}
	if got := d.status(id); got != "running" {
		t.Errorf("detached: %s", got)
	}
	b, err := d.client.ContainerAttach(t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, DetachKeys: "ctrl-a,x"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	b.Conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(b.Conn, "again\x10\x11")
	buf = make([]byte, 7)
	if _, err := io.ReadFull(b.Reader, buf); string(buf) != "again\x10\x11" || err != nil {
		t.Errorf("%q, %v", buf, err)
	}
	io.WriteString(b.Conn, "\x01x")
	if rest, err := io.ReadAll(b.Reader); len(rest) != 0 || err != nil {
		t.Errorf("after its own detach keys: %q, %v", rest, err)
	}
}

func TestWaitConditions(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"sleep"}}, container.HostConfig{AutoRemove: true})
	next := d.client.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	removed := d.client.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
	now := d.client.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	result := func(w client.ContainerWaitResult) int64 {
		t.Helper()
		select {
		case r := <-w.Result:
			return r.StatusCode
		case err := <-w.Error:
			t.Fatal(err)
		case <-time.After(patience):
			t.Fatal("no result")
		}
		return -1
	}
	if got := result(now); got != 0 {
		t.Errorf("not running: %d", got)
	}
	d.startID(id)
	d.ok("kill", "-s", "TERM", id)
	if got := result(next); got != 143 {
		t.Errorf("next exit: %d", got)
	}
	if got := result(removed); got != 143 {
		t.Errorf("removed: %d", got)
	}
	if got := d.status(id); !strings.Contains(got, "No such container") {
		t.Errorf("after the removal: %s", got)
	}
}

func TestLogs(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "cc", "img", "ticks")
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	follow, err := d.client.ContainerLogs(ctx, "cc", client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	got := make(chan string, 1)
	go func() {
		var out bytes.Buffer
		stdcopy.StdCopy(&out, io.Discard, follow)
		got <- out.String()
	}()
	until(t, "first line", func() bool { return d.ok("logs", "cc") == "ready" })
	between := time.Now()
	for _, want := range []string{"ready\ntick", "ready\ntick\ntick"} {
		d.ok("kill", "-s", "USR1", "cc")
		until(t, "tick", func() bool { return d.ok("logs", "cc") == want })
	}
	d.ok("stop", "cc")
	if out := <-got; out != "ready\ntick\ntick\n" {
		t.Errorf("followed %q", out)
	}
	for _, c := range []struct{ want, args string }{
		{"tick", "--tail 1"},
		{"", "--tail 0"},
		{"ready\ntick\ntick", "--tail 99"},
		{"tick\ntick", "--since " + between.Format(time.RFC3339Nano)},
		{"ready", "--until " + between.Format(time.RFC3339Nano)},
		{"ready\ntick\ntick", "--since 1h"},
		{"ready\ntick\ntick", "-f"}, // of a stopped container
	} {
		if out := d.ok(append(append([]string{"logs"}, strings.Fields(c.args)...), "cc")...); out != c.want {
			t.Errorf("logs %s: %q, want %q", c.args, out, c.want)
		}
	}
	stamp, line, _ := strings.Cut(d.ok("logs", "--tail", "1", "--timestamps", "cc"), " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil || line != "tick" || at.Before(begun) || at.After(time.Now()) {
		t.Errorf("%s %q, %v", stamp, line, err)
	}
	d.ok("run", "--name", "quiet", "--log-driver", "none", "img", "echo", "x")
	d.refused("configured logging driver does not support reading", "logs", "quiet")
}

// The answer to logs -f comes before the first line does.
func TestFollowNothing(t *testing.T) {
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"cat"}, OpenStdin: true}, container.HostConfig{})
	d.startID(id)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	logs, err := d.client.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	logs.Close()
}

// A client that does not read delays neither the log nor another client nor
// the container's end, and still gets everything when it reads at last.
func TestSlowClient(t *testing.T) {
	const size = 32 << 20
	d := start(t)
	id := d.create(container.Config{Cmd: []string{"spam", "33554432"}}, container.HostConfig{})
	slow, quick := d.attach(id), d.attach(id)
	d.startID(id)
	count := func(r io.Reader) (n countLast) {
		t.Helper()
		if _, err := stdcopy.StdCopy(&n, io.Discard, r); err != nil {
			t.Error(err)
		}
		return n
	}
	if got := count(quick.Reader); got.n != size+5 || got.last != "last\n" {
		t.Errorf("the quick client got %d bytes, the last %q", got.n, got.last)
	}
	until(t, "end of the container", func() bool { return d.status(id) == "exited" })
	if out := d.ok("logs", "--tail", "1", id); out != "last" {
		t.Errorf("the log ends with %q", out)
	}
	if got := count(slow.Reader); got.n != size+5 || got.last != "last\n" {
		t.Errorf("the slow client got %d bytes, the last %q", got.n, got.last)
	}
}

// An exec whose client begins to read late loses nothing, although the process
// has long ended: more than the client's socket holds (208 KiB), and less than
// what lies between the two, or the process would wait.
func TestSlowExecClient(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "up", "img", "sleep")
	x, err := d.client.ExecCreate(t.Context(), "up", client.ExecCreateOptions{Cmd: []string{"spam", "262144"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.client.ExecAttach(t.Context(), x.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Conn.SetDeadline(time.Now().Add(patience))
	var in client.ExecInspectResult
	until(t, "end of the process", func() bool {
		in, err = d.client.ExecInspect(t.Context(), x.ID, client.ExecInspectOptions{})
		return err != nil || !in.Running
	})
	if err != nil || in.ExitCode != 0 {
		t.Fatalf("%+v, %v", in, err)
	}
	time.Sleep(5 * time.Second) // more than twice what an ended process's output may take
	var n countLast
	if _, err := stdcopy.StdCopy(&n, io.Discard, a.Reader); err != nil || n.n != 262149 || n.last != "last\n" {
		t.Errorf("%d bytes, the last %q, %v", n.n, n.last, err)
	}
}

// countLast counts bytes and keeps the last five.
type countLast struct {
	n    int
	last string
}

func (c *countLast) Write(p []byte) (int, error) {
	c.n += len(p)
	c.last += string(p[max(0, len(p)-5):])
	c.last = c.last[max(0, len(c.last)-5):]
	return len(p), nil
}
