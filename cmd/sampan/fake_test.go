package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// fakeDaemon serves the API's socket of a home, as far as the commands need
// it: it records requests and answers from tables.
type fakeDaemon struct {
	home string
	mux  *http.ServeMux

	mu       sync.Mutex
	requests []string // "METHOD PATH?QUERY BODY", without the API version
}

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func newFake(t *testing.T) *fakeDaemon {
	t.Helper()
	home, err := os.MkdirTemp("", "sampan-cli-") // t.TempDir's paths are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	f := &fakeDaemon{home: home, mux: http.NewServeMux()}
	ln, err := net.Listen("unix", filepath.Join(home, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	f.mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.50")
	})
	return f
}

func (f *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v1.50"); ok {
		r.URL.Path = rest
	}
	line := r.Method + " " + r.URL.Path
	if r.URL.RawQuery != "" {
		line += "?" + r.URL.RawQuery
	}
	if r.Header.Get("Upgrade") == "" || r.ContentLength > 0 {
		body, _ := io.ReadAll(r.Body) // what is missing shows in the test
		r.Body = io.NopCloser(bytes.NewReader(body))
		if len(body) > 0 {
			line += " " + strings.TrimSpace(string(body))
		}
	}
	if r.URL.Path != "/_ping" {
		f.mu.Lock()
		f.requests = append(f.requests, line)
		f.mu.Unlock()
	}
	f.mux.ServeHTTP(w, r)
}

// seen are the requests up to now.
func (f *fakeDaemon) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.requests...)
}

// answer makes the fake reply to a pattern of http.ServeMux.
func (f *fakeDaemon) answer(pattern string, status int, body any) {
	f.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if text, ok := body.(string); ok && status < 400 {
			fmt.Fprint(w, text)
			return
		} else if ok {
			body = map[string]string{"message": text}
		}
		if body != nil {
			_ = json.NewEncoder(w).Encode(body)
		}
	})
}

// hijack answers a pattern with a raw connection.
func (f *fakeDaemon) hijack(pattern string, serve func(net.Conn, io.Reader)) {
	f.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		serve(conn, rw.Reader)
	})
}

// container makes the fake run one container: it writes out and err, echoes
// stdin, and ends with code.
func (f *fakeDaemon) container(code int, out, errText string) {
	started, ended := make(chan struct{}), make(chan struct{})
	f.answer("POST /containers/create", 201, map[string]any{"Id": testID, "Warnings": []string{}})
	f.hijack("POST /containers/{id}/attach", func(conn net.Conn, in io.Reader) {
		<-started
		fmt.Fprint(stdcopyWriter(conn, stdcopy.Stdout), out)
		fmt.Fprint(stdcopyWriter(conn, stdcopy.Stderr), errText)
		_, _ = io.Copy(stdcopyWriter(conn, stdcopy.Stdout), in)
		close(ended)
	})
	f.mux.HandleFunc("POST /containers/{id}/wait", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-ended
		fmt.Fprintf(w, `{"StatusCode":%d}`, code)
	})
	f.mux.HandleFunc("POST /containers/{id}/start", func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		w.WriteHeader(204)
	})
}

// stdcopyWriter frames what is written to it.
func stdcopyWriter(w io.Writer, kind stdcopy.StdType) io.Writer { return frames{w, kind} }

type frames struct {
	w    io.Writer
	kind stdcopy.StdType
}

func (f frames) Write(b []byte) (int, error) {
	n := len(b)
	head := []byte{byte(f.kind), 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	if _, err := f.w.Write(append(head, b...)); err != nil {
		return 0, err
	}
	return n, nil
}

// result is what a command line gave.
type result struct {
	code     int
	out, err string
}

func (f *fakeDaemon) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	env := map[string]string{"SAMPAN_HOME": f.home, "HOME": "/nonexistent"}
	a := newApp(strings.NewReader(stdin), &out, &errOut, func(k string) string { return env[k] })
	code := run(t.Context(), args, a)
	return result{code, out.String(), errOut.String()}
}
