package e2e_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slowReaders tests clients that stop reading: one that is attached and two that
// follow the log hold up neither the container whose output they don't take nor
// others; when they go on they miss nothing.
func (h *home) slowReaders(t *testing.T) {
	last := 300_000 // 2 MB: more than pipes and sockets hold
	if nightly() {
		last = 8_000_000 // 63 MB
	}
	h.sampan(t, "run", "-d", "--name", "other", "busybox", "sh", "-c", "echo ready; exec sleep 1000")
	h.sampan(t, "create", "-i", "--name", "big", "busybox", "sh", "-c", fmt.Sprintf("echo ready; read go; seq -s ' ' 1 %d", last))

	type reader struct {
		what string
		out  *os.File
		wait func() error
		stop func(syscall.Signal) error
	}
	var readers []reader
	start := func(stdin io.Reader, name string, args ...string) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		cmd := h.command(t, name, args...)
		cmd.Stdin, cmd.Stdout = stdin, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		readers = append(readers, reader{fmt.Sprint(name, args), r, cmd.Wait, func(s syscall.Signal) error { return cmd.Process.Signal(s) }})
	}
	goOn, stdin := io.Pipe()
	start(goOn, "docker", "start", "-ai", "big")
	eventually(t, 30*time.Second, "big runs", func() bool { return h.sampan(t, "inspect", "-f", "{{.State.Running}}", "big") == "true\n" })
	start(nil, "sampan", "logs", "-f", "big")
	start(nil, "docker", "logs", "-f", "big")
	for _, r := range readers { // it follows, from here on without being read
		got := make([]byte, len("ready\n"))
		if _, err := io.ReadFull(r.out, got); err != nil || string(got) != "ready\n" {
			t.Fatalf("%s: %q, %v", r.what, got, err)
		}
	}
	if err := readers[2].stop(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	if out := h.sampan(t, "wait", "big"); out != "0\n" {
		t.Fatalf("big ended with %q while nobody read", out)
	}
	if out := h.sampan(t, "run", "--rm", "busybox", "echo", "hi"); out != "hi\n" {
		t.Errorf("run: %q", out)
	}
	if out := h.must(t, "docker", "exec", "other", "echo", "hi"); out != "hi\n" {
		t.Errorf("exec: %q", out)
	}
	if out := h.must(t, "docker", "logs", "other"); out != "ready\n" {
		t.Errorf("logs: %q", out)
	}
	if err := readers[2].stop(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range last {
		fmt.Fprint(&want, i+1, []string{" ", "\n"}[(i+1)/last])
	}
	for _, r := range readers {
		got, err := io.ReadAll(r.out)
		if err != nil {
			t.Fatal(err)
		}
		stdin.Close()
		if err := r.wait(); err != nil {
			t.Errorf("%s: %v", r.what, err)
		}
		if string(got) != want.String() {
			t.Errorf("%s: %d bytes, want %d, or others", r.what, len(got), want.Len())
		}
	}
}
