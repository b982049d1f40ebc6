package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// A terminal session: raw, resized at its start and whenever the window is,
// and left by the detach keys with the terminal as it was.
func TestTerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(slave, &pty.Winsize{Rows: 30, Cols: 90}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}

	f := newFake(t)
	sizes := make(chan string, 8)
	keys := make(chan string, 8)
	end := make(chan struct{})
	f.answer("POST /containers/create", 201, map[string]any{"Id": testID})
	f.hijack("POST /containers/{id}/attach", func(conn net.Conn, in io.Reader) {
		fmt.Fprint(conn, "\x1b[1mprompt# ")
		buf := make([]byte, 16)
		for {
			n, err := in.Read(buf)
			if err != nil {
				return
			}
			keys <- string(buf[:n])
		}
	})
	f.mux.HandleFunc("POST /containers/{id}/wait", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-end
	})
	f.answer("POST /containers/{id}/start", 204, nil)
	f.mux.HandleFunc("POST /containers/{id}/resize", func(_ http.ResponseWriter, r *http.Request) {
		sizes <- r.URL.Query().Get("h") + "x" + r.URL.Query().Get("w")
	})
	defer close(end)

	var errOut bytes.Buffer
	a := newApp(slave, slave, &errOut, func(string) string { return f.home })
	done := make(chan int, 1)
	go func() { done <- run(t.Context(), []string{"run", "-it", "x"}, a) }()

	want(t, sizes, "30x90")
	if body := f.seen()[0]; !strings.Contains(body, `"ConsoleSize":[30,90]`) || !strings.Contains(body, `"Tty":true`) {
		t.Errorf("created with %s", body)
	}
	screen := make([]byte, 64)
	if n, err := master.Read(screen); err != nil || string(screen[:n]) != "\x1b[1mprompt# " {
		t.Errorf("screen %q, %v", screen[:n], err)
	}
	press := func(s string) {
		t.Helper()
		if _, err := io.WriteString(master, s); err != nil {
			t.Fatal(err)
		}
	}
	// Ctrl-C is a key, not a signal, and nothing is echoed here.
	press("\x03")
	want(t, keys, "\x03")
	if err := pty.Setsize(slave, &pty.Winsize{Rows: 31, Cols: 91}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	want(t, sizes, "31x91")
	press("\x10\x11") // ctrl-p, ctrl-q
	select {
	case code := <-done:
		if code != 0 || errOut.String() != "read escape sequence\n" {
			t.Errorf("code %d, stderr %q", code, errOut.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not detached")
	}
	after, err := term.GetState(int(slave.Fd()))
	if err != nil || *after != *before {
		t.Errorf("the terminal is not as it was: %v", err)
	}
}

func want(t *testing.T, c chan string, want string) {
	t.Helper()
	select {
	case got := <-c:
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no %q", want)
	}
}
