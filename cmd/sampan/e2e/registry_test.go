package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"sampan/host/imagetest"
)

// startRegistry runs Debian's docker-registry on loopback, with more lines of
// configuration if given, and returns its address.
func startRegistry(t *testing.T, more ...string) string {
	t.Helper()
	return startRegistryAt(t, "127.0.0.1", more...)
}

func startRegistryAt(t *testing.T, host string, more ...string) string {
	t.Helper()
	addr := net.JoinHostPort(host, fmt.Sprint(freePort(t)))
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", dir, addr)
	text += strings.Join(more, "")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("docker-registry: %v: run `make deps`", err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("docker-registry: %s", out.Bytes())
		}
	})
	eventually(t, 10*time.Second, "the registry listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

func imageFromArchive(t *testing.T, name string) v1.Image {
	t.Helper()
	img, err := tarball.ImageFromPath(filepath.Join(files.dir, "images", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A Debian root with nginx, in several layers, from a real registry: a page, a
// large file and many requests at once through a published port.
func TestNginxFromRegistry(t *testing.T) {
	h := newHome(t)
	ref := startRegistry(t) + "/debian/nginx:1"
	if err := imagetest.Push(ref, imageFromArchive(t, "nginx.tar")); err != nil {
		t.Fatal(err)
	}
	out := h.sampan(t, "pull", ref)
	if !strings.Contains(out, "Digest: sha256:") || !strings.Contains(out, "Status: Downloaded newer image for "+ref) {
		t.Errorf("pull printed %q", out)
	}
	if out := h.sampan(t, "pull", ref); !strings.Contains(out, "Status: Image is up to date for "+ref) {
		t.Errorf("the second pull printed %q", out)
	}
	// As Docker does: what the name stands for alone is pulled, and the mismatch told.
	if out := h.sampan(t, "pull", "--platform", "linux/riscv64", ref); !strings.Contains(out, "WARNING: image with reference "+ref+" was found but does not match the specified platform: wanted linux/riscv64, actual: linux/amd64") {
		t.Errorf("the pull for another platform printed %q", out)
	}

	site := t.TempDir()
	big := make([]byte, 100<<20)
	rand.NewChaCha8([32]byte{2}).Read(big)
	for name, data := range map[string][]byte{"index.html": []byte("from the host\n"), "big": big} {
		if err := os.WriteFile(filepath.Join(site, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	drop := t.TempDir()
	h.sampan(t, "run", "-d", "--name", "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "-v", site+":/srv:ro", "-v", drop+":/drop", ref)
	eventually(t, time.Minute, "nginx answers", func() bool {
		body, err := get(url)
		return err == nil && body == "from the host\n"
	})

	begin := time.Now()
	resp, err := client().Get(url + "big")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, resp.Body); err != nil || n != int64(len(big)) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if want := sha256.Sum256(big); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("the large file came damaged")
	}
	t.Logf("100 MiB through share and port in %s", time.Since(begin).Round(time.Millisecond))

	var wrong atomic.Int32
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if body, err := get(url); err != nil || body != "from the host\n" {
				wrong.Add(1)
				t.Logf("got %q, %v", body, err)
			}
		})
	}
	wg.Wait()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d of 200 concurrent requests went wrong", n)
	}
	for _, uid := range []string{"0", "1000"} {
		h.sampan(t, "exec", "-u", uid, "web", "sh", "-c", "cp /srv/index.html /drop/by-"+uid)
		if got := h.sampan(t, "exec", "web", "stat", "-c", "%u", "/drop/by-"+uid); got != uid+"\n" {
			t.Errorf("the file of uid %s belongs to %q in the container", uid, got)
		}
		ownedByUs(t, filepath.Join(drop, "by-"+uid))
	}
	if logs := h.sampan(t, "logs", "web"); strings.Count(logs, "GET / ") < 200 {
		t.Errorf("the log has %d requests, want 200 at least", strings.Count(logs, "GET / "))
	}
	h.sampan(t, "stop", "web")
	if got := h.sampan(t, "inspect", "-f", "{{.State.ExitCode}}", "web"); got != "0\n" {
		t.Errorf("nginx ended with %q after its stop signal", got)
	}
}

// A registry that sends other bytes than the digest says is refused, and
// nothing is stored.
func TestWrongDigest(t *testing.T) {
	h := newHome(t)
	img := imageFromArchive(t, "busybox.tar")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	var lie atomic.Bool
	real := registry.New()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lie.Load() && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.String()) {
			rec := httptest.NewRecorder()
			real.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			body[len(body)/2] ^= 1
			w.Write(body)
			return
		}
		real.ServeHTTP(w, r)
	}))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/busybox:latest"
	if err := imagetest.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "images")
	before := tree(t, h.dir)
	lie.Store(true)
	if r := h.try(t, "", "sampan", "pull", ref); r.code != 1 || !strings.Contains(r.stderr, "digest") && !strings.Contains(r.stderr, "gzip") && !strings.Contains(r.stderr, "verif") {
		t.Errorf("got %+v; want exit code 1 and the reason", r)
	}
	if out := h.sampan(t, "images", "-q"); out != "" {
		t.Errorf("stored: %q", out)
	}
	if after := tree(t, h.dir); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	lie.Store(false)
	h.sampan(t, "pull", ref)
}

// A layer that grows beyond the configured bound, and a registry that points to
// a service of this machine, are refused in plain words; nothing is stored and
// nobody is reached.
func TestHostileRegistry(t *testing.T) {
	host := otherAddress()
	if host == "" {
		skip(t, "this machine has no address but loopback's, where registries may point to it")
	}
	var reached atomic.Bool
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer inner.Close()
	zeros, err := imagetest.Layer(imagetest.File{Name: "zeros", Data: make([]byte, 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := zeros.Digest()
	if err != nil {
		t.Fatal(err)
	}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/lead/blobs/"+digest.String()) {
			http.Redirect(w, r, inner.URL+"/secret", http.StatusTemporaryRedirect)
			return
		}
		real.ServeHTTP(w, r)
	}))
	srv.Listener.Close()
	if srv.Listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	img, err := imagetest.Image(v1.Config{}, zeros)
	if err == nil {
		err = errors.Join(imagetest.Push(addr+"/bomb", img), imagetest.Push(addr+"/lead", img))
	}
	if err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("[images]\nmax-layer = \"1MiB\"\n[registries.%q]\ninsecure = true\n", addr)
	if err := os.WriteFile(filepath.Join(h.dir, "config.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "images")
	before := tree(t, h.dir)
	for image, words := range map[string]string{"bomb": "layer too big: more than the limit of 1048576 bytes uncompressed", "lead": "registry points to this machine"} {
		for _, cli := range []string{"sampan", "docker"} {
			if r := h.try(t, "", cli, "pull", addr+"/"+image); r.code != 1 || !strings.Contains(r.stderr, words) {
				t.Errorf("%s pull %s: %+v, want the words %q", cli, image, r, words)
			}
		}
	}
	if reached.Load() {
		t.Error("a service of this machine was reached")
	}
	if after := tree(t, h.dir); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// tree lists the files of a home that are not logs.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".log") {
			out = append(out, path)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// A layer with everything a layer may hold looks in the container as GNU tar
// and overlayfs show it, file by file; and so does a volume that it was copied to,
// and one that this was carried to as a tar.
func TestOddLayers(t *testing.T) {
	want, err := os.ReadFile(filepath.Join(files.dir, "images", "odd.want"))
	if errors.Is(err, os.ErrNotExist) {
		skip(t, "only root can unpack devices and mount overlayfs to compare with: run the tests as root")
	} else if err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	h.sampan(t, "load", "-q", "-i", filepath.Join(files.dir, "images", "odd.tar"))
	for _, dir := range []string{"odd", "many", "opaque", "hidden", "new"} {
		got := strings.Split(h.sampan(t, "run", "--rm", "odd", "/"+dir), "\n")
		var expect []string
		for _, line := range strings.Split(string(want), "\n") {
			if rest, ok := strings.CutPrefix(line, `"./`+dir); ok && (rest[0] == '"' || rest[0] == '/') {
				expect = append(expect, `".`+strings.ReplaceAll(rest, `same as "./`+dir, `same as ".`))
			}
		}
		compare(t, dir, got, append(expect, ""))
	}
	// The third name of that file is hidden. A tar has whole seconds and, of
	// extended attributes, capabilities: as Docker's.
	lost := regexp.MustCompile(`(?:\.\d{9}| user\.[a-z]+="[^ ]*")( |$)`)
	list := func(args ...string) []string {
		out := h.sampan(t, append([]string{"run", "--rm"}, args...)...)
		return strings.Split(strings.ReplaceAll(out, " links 3 ", " links 2 "), "\n")
	}
	whole := func(lines []string) []string {
		out := slices.Clone(lines)
		for i, line := range out {
			for short := ""; short != line; line = out[i] {
				short = line
				out[i] = lost.ReplaceAllString(line, "$1")
			}
		}
		return out
	}
	odd := list("odd", "/odd")
	compare(t, "copied to a volume", list("-v", "copied:/odd", "odd", "/odd"), odd)
	tar := filepath.Join(t.TempDir(), "copied.tar")
	h.sampan(t, "volume", "export", "-o", tar, "copied")
	h.sampan(t, "volume", "import", "again", tar)
	compare(t, "exported and imported", whole(list("-v", "again:/odd:nocopy", "odd", "/odd")), whole(odd))
	// What stands beside those folders.
	all := h.sampan(t, "run", "--rm", "--entrypoint", "/lister", "odd", "/replaced") + h.sampan(t, "run", "--rm", "odd", "/twice")
	for _, name := range []string{"replaced", "twice"} {
		for _, line := range strings.Split(string(want), "\n") {
			if rest, ok := strings.CutPrefix(line, `"./`+name+`"`); ok && !strings.Contains(all, `"."`+rest) {
				t.Errorf("%s: want %s in\n%s", name, rest, all)
			}
		}
	}
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%s: line %d:\n got %s\nwant %s", what, i+1, g, w)
			return
		}
	}
}
