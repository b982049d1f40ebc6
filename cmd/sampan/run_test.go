package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kinds are the requests without their queries and bodies.
func kinds(requests []string) []string {
	var out []string
	for _, r := range requests {
		r, _, _ = strings.Cut(r, " {")
		r, _, _ = strings.Cut(r, "?")
		out = append(out, strings.ReplaceAll(r, testID, "ID"))
	}
	return out
}

func TestRunForeground(t *testing.T) {
	for _, code := range []int{0, 3, 137} {
		f := newFake(t)
		f.container(code, "to stdout\n", "to stderr\n")
		stdin := strings.Repeat("some words\n", 100_000)
		res := f.run(t, stdin, "run", "-i", "x", "cat")
		if res.code != code || res.err != "to stderr\n" {
			t.Errorf("code %d, stderr %q; want %d", res.code, res.err, code)
		}
		if res.out != "to stdout\n"+stdin {
			t.Errorf("stdout has %d bytes", len(res.out))
		}
		// Attached and waited for before it is started.
		want := []string{"POST /containers/create", "POST /containers/ID/attach", "POST /containers/ID/wait", "POST /containers/ID/start"}
		if got := kinds(f.seen()); !slices.Equal(got, want) {
			t.Errorf("requests %q", got)
		}
		if wait := f.seen()[2]; !strings.HasSuffix(wait, "?condition=next-exit") {
			t.Errorf("waits with %s", wait)
		}
	}
}

func TestRunRemoveWaitsForRemoval(t *testing.T) {
	f := newFake(t)
	f.container(0, "", "")
	if res := f.run(t, "", "run", "--rm", "-i", "x"); res.code != 0 {
		t.Errorf("%+v", res)
	}
	if wait := f.seen()[2]; !strings.HasSuffix(wait, "?condition=removed") {
		t.Errorf("waits with %s", wait)
	}
}

// TestRunBrokenPipe: who reads has gone, as in `run … | head`; Docker's client
// says so and exits with 1.
func TestRunBrokenPipe(t *testing.T) {
	f := newFake(t)
	f.container(0, "more\n", "")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	var errOut bytes.Buffer
	a := newApp(strings.NewReader(""), w, &errOut, func(string) string { return f.home })
	code := run(t.Context(), []string{"run", "-i", "x"}, a)
	if want := "write |1: broken pipe\n"; code != 1 || errOut.String() != want {
		t.Errorf("code %d, %q; want 1, %q", code, errOut.String(), want)
	}
}

func TestRunDetached(t *testing.T) {
	f := newFake(t)
	f.container(0, "", "")
	res := f.run(t, "", "run", "-d", "x")
	if res.code != 0 || res.out != testID+"\n" || res.err != "" {
		t.Errorf("%+v", res)
	}
	if got, want := kinds(f.seen()), []string{"POST /containers/create", "POST /containers/ID/start"}; !slices.Equal(got, want) {
		t.Errorf("requests %q", got)
	}
	if strings.Contains(f.seen()[0], `"AttachStdout":true`) {
		t.Errorf("a detached container is attached: %s", f.seen()[0])
	}
}

func TestStartFailures(t *testing.T) {
	tests := []struct {
		status  int
		message string
		code    int
	}{
		{404, `failed to create task for container: exec: "nope": executable file not found in $PATH: unknown`, 127},
		{400, `exec: "/nope": stat /nope: no such file or directory: unknown`, 127},
		{400, `exec: "/etc/passwd": permission denied: unknown`, 126},
		{400, `exec: "/etc": is a directory: unknown`, 126},
		{500, "boot: stage \"kernel\" not reached", 125},
	}
	for _, tt := range tests {
		for _, how := range [][]string{{"run", "x"}, {"run", "-d", "x"}} {
			f := newFake(t)
			f.answer("POST /containers/create", 201, map[string]any{"Id": testID})
			f.answer("POST /containers/{id}/start", tt.status, tt.message)
			end := make(chan struct{})
			f.hijack("POST /containers/{id}/attach", func(_ net.Conn, _ io.Reader) { <-end })
			f.answer("POST /containers/{id}/wait", 200, `{"StatusCode":0}`)
			res := f.run(t, "", how...)
			close(end)
			want := "sampan: Error response from daemon: " + tt.message + "\n\nRun 'sampan run --help' for more information\n"
			if res.code != tt.code || res.err != want {
				t.Errorf("%v, %s: code %d, want %d; stderr:\n%s", how, tt.message, res.code, tt.code, res.err)
			}
		}
	}
}

func TestRunPulls(t *testing.T) {
	const pulled = `{"status":"Pulling from library/x","id":"latest"}
{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}
{"status":"Pull complete","id":"abc"}
{"status":"Status: Downloaded newer image for x:latest"}
`
	const shown = "latest: Pulling from library/x\nabc: Pull complete\nStatus: Downloaded newer image for x:latest\n"
	const missing = "Unable to find image 'x:latest' locally\n"
	tests := []struct {
		args string
		have bool // the image is there
		code int
		err  string
		want []string
	}{
		{"run -d x", false, 0, missing + shown, []string{"POST /containers/create", "POST /images/create", "POST /containers/create", "POST /containers/ID/start"}},
		{"run -d -q x", false, 0, "", []string{"POST /containers/create", "POST /images/create", "POST /containers/create", "POST /containers/ID/start"}},
		{"run -d --pull always x", true, 0, shown, []string{"POST /images/create", "POST /containers/create", "POST /containers/ID/start"}},
		{"run -d x", true, 0, "", []string{"POST /containers/create", "POST /containers/ID/start"}},
		{"run -d --pull never x", false, 125, "sampan: Error response from daemon: No such image: x:latest\n\nRun 'sampan run --help' for more information\n", []string{"POST /containers/create"}},
	}
	for _, tt := range tests {
		f := newFake(t)
		have := tt.have
		f.mux.HandleFunc("POST /containers/create", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if !have {
				w.WriteHeader(404)
				fmt.Fprint(w, `{"message":"No such image: x:latest"}`)
				return
			}
			w.WriteHeader(201)
			fmt.Fprintf(w, `{"Id":%q}`, testID)
		})
		f.mux.HandleFunc("POST /images/create", func(w http.ResponseWriter, _ *http.Request) {
			have = true
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, pulled)
		})
		f.answer("POST /containers/{id}/start", 204, nil)
		res := f.run(t, "", strings.Fields(tt.args)...)
		if got := kinds(f.seen()); res.code != tt.code || res.err != tt.err || !slices.Equal(got, tt.want) {
			t.Errorf("%s: code %d, requests %q, stderr:\n%s", tt.args, res.code, got, res.err)
		}
	}
}

func TestPullFails(t *testing.T) {
	f := newFake(t)
	f.answer("POST /images/create", 200, `{"status":"Pulling from library/x","id":"latest"}
{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}
`)
	res := f.run(t, "", "pull", "x")
	if res.code != 1 || res.err != "manifest unknown\n" || res.out != "Using default tag: latest\nlatest: Pulling from library/x\n" {
		t.Errorf("%+v", res)
	}
	if got := f.seen(); !slices.Equal(got, []string{"POST /images/create?fromImage=docker.io%2Flibrary%2Fx&tag=latest"}) {
		t.Errorf("%q", got)
	}
}

// Signals that come before the container runs reach it as well.
func TestSignalsAreForwarded(t *testing.T) {
	f := newFake(t)
	killed := make(chan string, 4)
	f.answer("POST /containers/create", 201, map[string]any{"Id": testID})
	end := make(chan struct{})
	f.hijack("POST /containers/{id}/attach", func(_ net.Conn, _ io.Reader) { <-end })
	f.mux.HandleFunc("POST /containers/{id}/wait", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-end
		fmt.Fprint(w, `{"StatusCode":143}`)
	})
	f.mux.HandleFunc("POST /containers/{id}/start", func(w http.ResponseWriter, _ *http.Request) {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		w.WriteHeader(204)
	})
	f.mux.HandleFunc("POST /containers/{id}/kill", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(204)
		killed <- r.URL.Query().Get("signal")
	})
	go func() {
		select {
		case name := <-killed:
			if name != "USR1" {
				t.Errorf("signal %s", name)
			}
			if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if name := <-killed; name != "TERM" {
				t.Errorf("signal %s", name)
			}
		case <-time.After(time.Minute):
			t.Error("no signal came")
		}
		close(end)
	}()
	if res := f.run(t, "", "run", "x"); res.code != 143 {
		t.Errorf("%+v", res)
	}
}

func TestExec(t *testing.T) {
	f := newFake(t)
	f.answer("POST /containers/c/exec", 201, map[string]any{"Id": "e1"})
	f.hijack("POST /exec/e1/start", func(conn net.Conn, in io.Reader) { _, _ = io.Copy(stdcopyWriter(conn, 1), in) })
	f.answer("GET /exec/e1/json", 200, map[string]any{"ID": "e1", "ExitCode": 5})
	res := f.run(t, "words", "exec", "-i", "-e", "A=1", "-w", "/w", "-u", "u", "--privileged", "c", "cat", "-x")
	if res.code != 5 || res.out != "words" || res.err != "" {
		t.Errorf("%+v", res)
	}
	want := `POST /containers/c/exec {"User":"u","Privileged":true,"Tty":false,"AttachStdin":true,"AttachStderr":true,"AttachStdout":true,"DetachKeys":"","Env":["A=1"],"WorkingDir":"/w","Cmd":["cat","-x"]}`
	if got := f.seen()[0]; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}

	f = newFake(t)
	f.answer("POST /containers/c/exec", 409, "container c is not running")
	if res := f.run(t, "", "exec", "c", "x"); res.code != 1 || res.err != "Error response from daemon: container c is not running\n" {
		t.Errorf("%+v", res)
	}
	f = newFake(t)
	f.answer("POST /containers/c/exec", 201, map[string]any{"Id": "e1"})
	f.answer("POST /exec/e1/start", 400, `exec: "nope": executable file not found in $PATH`)
	if res := f.run(t, "", "exec", "-d", "c", "nope"); res.code != 1 { // a failed request, as docker has it
		t.Errorf("%+v", res)
	}
}
