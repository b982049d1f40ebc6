// Package api_test drives the engine and its API, over a real socket, by
// clients that we did not write: moby's library and the docker command. The
// guest is a fake whose processes are goroutines.
package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"sampan/host/api"
	"sampan/host/engine"
	"sampan/host/image"
	"sampan/host/imagetest"
	"sampan/host/witness"
)

// patience bounds every wait.
const patience = time.Minute

// daemon is an API on a socket.
type daemon struct {
	t       *testing.T
	home    string
	machine *fakeMachine
	engine  *engine.Engine
	images  *image.Store
	client  *client.Client
	stop    func()
}

// start serves a new home that has the image "img".
func start(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, home: t.TempDir()}
	d.serve()
	layer, err := imagetest.Layer(imagetest.File{Name: "etc/"})
	if err != nil {
		t.Fatal(err)
	}
	img, err := imagetest.Image(v1.Config{Cmd: []string{"true"}, Env: []string{"FROM=image"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "img.tar")
	if err := imagetest.Archive(tar, "img", img); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tar)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := d.images.Load(t.Context(), f, func(image.Progress) {}); err != nil {
		t.Fatal(err)
	}
	return d
}

// serve starts a daemon over the home.
func (d *daemon) serve() {
	t := d.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	var err error
	if d.images, err = image.Open(filepath.Join(d.home, "images"), log); err != nil {
		t.Fatal(err)
	}
	d.machine = &fakeMachine{}
	d.engine, err = engine.New(engine.Config{
		Home: d.home, Machine: d.machine, Image: d.image, HoldLayers: d.images.Hold,
		Export:      func(string, bool) (engine.Export, error) { return fakeExport{}, nil },
		Socket:      func(string) (engine.Export, error) { return fakeExport{}, nil },
		DNS:         []netip.Addr{netip.MustParseAddr("192.168.127.1")},
		HostGateway: netip.MustParseAddr("192.168.127.254"),
		Uplink:      netip.MustParsePrefix("192.168.127.0/24"),
		Routes:      func() []netip.Prefix { return nil },
		Arch:        "amd64", CPUs: 4, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(d.home, "sampan.sock")
	os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: api.New(api.Config{Engine: d.engine, Images: d.images, Build: "test", Home: d.home, Log: log}),
		ErrorLog: stdlog.New(noPanic{t}, "", 0)}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ln) }()
	seen := watch(t, socket, filepath.Join(d.home, "docker.sock"))
	if d.client, err = client.New(client.WithHost("unix://" + filepath.Join(d.home, "docker.sock"))); err != nil {
		t.Fatal(err)
	}
	var stopped atomic.Bool
	eng, m := d.engine, d.machine
	d.stop = func() {
		if stopped.Swap(true) {
			return
		}
		ln.Close()
		m.crash()
		eng.Close()
		srv.Close()
		<-served
		d.client.Close()
		seen()
	}
	t.Cleanup(d.stop)
}

func (d *daemon) image(ref string) (engine.Image, error) {
	img, err := d.images.Get(ref)
	if err != nil {
		return engine.Image{}, err
	}
	var doc struct{ Config container.Config }
	if err := json.Unmarshal(img.RawConfig, &doc); err != nil {
		return engine.Image{}, err
	}
	return engine.Image{ID: img.ID, Layers: img.Layers, Arch: "amd64", Config: &doc.Config, Size: img.Size}, nil
}

type fakeExport struct{}

func (fakeExport) Name() string { return "export" }
func (fakeExport) Close() error { return nil }

// testWriter logs while the test runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// docker runs the real command.
func (d *daemon) docker(stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + d.home + "/docker.sock"}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+d.home+"/docker-config")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		d.t.Fatalf("docker %q did not end\n%s%s", args, out.String(), errs.String())
	}
	if cmd.ProcessState == nil {
		d.t.Fatalf("docker: %v: run `make deps`", err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ok runs the real command, which has to succeed, and returns its output.
func (d *daemon) ok(args ...string) string {
	d.t.Helper()
	out, errs, code := d.docker(nil, args...)
	if code != 0 {
		d.t.Fatalf("docker %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return strings.TrimSpace(out)
}

// refused runs the real command, which has to fail with words.
func (d *daemon) refused(words string, args ...string) {
	d.t.Helper()
	out, errs, code := d.docker(nil, args...)
	if code == 0 || !strings.Contains(errs, words) {
		d.t.Errorf("docker %q: exit code %d, want the words %q\n%s%s", args, code, words, out, errs)
	}
}

// raw sends a request and returns the answer's code and body.
func (d *daemon) raw(method, path, body string) (int, string) {
	d.t.Helper()
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.dial(), nil
	}, DisableKeepAlives: true}, Timeout: patience}
	req, err := http.NewRequest(method, "http://sampan"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := hc.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// watch puts a witness between clients and the socket; the result ends it, and
// fails the test for what it objects to.
func watch(t *testing.T, socket, path string) func() {
	t.Helper()
	described, err := described()
	if err != nil {
		t.Fatal(err)
	}
	w := &witness.Proxy{Socket: socket, API: described}
	if err := w.Listen(path); err != nil {
		t.Fatal(err)
	}
	return func() {
		w.Close()
		for _, f := range w.Unexpected() {
			t.Errorf("against Docker's description of its API: %s", f)
		}
	}
}

// described is Docker's description of its API.
var described = sync.OnceValues(func() (*witness.API, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		return nil, fmt.Errorf("find the API's module: %w", err)
	}
	return witness.Open(filepath.Join(strings.TrimSpace(string(dir)), "docs"), api.MaxVersion)
})

// dial connects to the socket, without a witness: it is for what clients don't
// say.
func (d *daemon) dial() *net.UnixConn {
	d.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.home + "/sampan.sock", Net: "unix"})
	if err != nil {
		d.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	d.t.Cleanup(func() { c.Close() })
	return c
}

// until waits for a condition that nothing tells of.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func (d *daemon) status(name string) string {
	d.t.Helper()
	c, err := d.client.ContainerInspect(d.t.Context(), name, client.ContainerInspectOptions{})
	if err != nil {
		return err.Error()
	}
	return string(c.Container.State.Status)
}

// noPanic fails the test when a handler panics, which net/http only logs.
type noPanic struct{ t testing.TB }

func (n noPanic) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panic serving")) {
		n.t.Errorf("%s", b)
	}
	return len(b), nil
}
