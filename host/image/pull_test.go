package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPull(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	ctx := context.Background()
	a, b, c := tarOf(t, "etc/a", "a"), tarOf(t, "b", random(1, 3<<20)), tarOf(t, "c", "c")
	plain := static.NewLayer(c, types.OCIUncompressedLayer)
	img := imageOf(t, gzipLayer(t, a), newZstdLayer(t, b), plain)
	ref := addr + "/some/thing:1"
	push(t, ref, img)

	var r recorder
	got, err := s.Pull(ctx, ref, PullOptions{}, r.tell)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := img.ConfigName()
	digest, _ := img.Digest()
	want := []string{digestOf(a), digestOf(b), digestOf(c)}
	if got.ID != id.String() || !reflect.DeepEqual(got.DiffIDs, want) ||
		!reflect.DeepEqual(got.Tags, []string{ref}) || !reflect.DeepEqual(got.Digests, []string{addr + "/some/thing@" + digest.String()}) ||
		got.Size != 3<<20+2 || got.Config.Config.Cmd[0] != "/bin/sh" || got.Created.Unix() != 1e9 {
		t.Errorf("got %+v", got)
	}
	for _, name := range got.Layers {
		if out, err := exec.Command("fsck.erofs", "--extract", filepath.Join(s.LayersDir(), name)).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
	}
	layers, _ := img.Layers()
	first, _ := layers[0].Digest()
	for _, line := range []string{"1: Pulling from some/thing", short(first.String()) + ": Pulling fs layer", short(first.String()) + ": Download complete",
		short(first.String()) + ": Pull complete", "Digest: " + digest.String(), "Status: Downloaded newer image for " + ref} {
		if !r.has(line) {
			t.Errorf("progress has no %q:\n%s", line, strings.Join(r.lines, "\n"))
		}
	}

	// Again: nothing is transferred.
	r = recorder{}
	if _, err := s.Pull(ctx, ref, PullOptions{}, r.tell); err != nil {
		t.Fatal(err)
	}
	if !r.has(short(first.String())+": Already exists") || !r.has("Status: Image is up to date for "+ref) || strings.Contains(strings.Join(r.lines, "\n"), "Downloading") {
		t.Errorf("second pull:\n%s", strings.Join(r.lines, "\n"))
	}
	// By digest, and after a restart.
	if _, err := s.Pull(ctx, addr+"/some/thing@"+digest.String(), PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	before := files(t, s)
	if s, err = Open(s.dir, s.log); err != nil {
		t.Fatal(err)
	}
	if after := files(t, s); after != before {
		t.Errorf("a restart changed\n%s\nto\n%s", before, after)
	}
	if m, err := s.Manifest(id.String()); err != nil || digestOf(m) != digest.String() {
		t.Errorf("manifest: %v", err)
	}
}

func TestPullPlatform(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	var index v1.ImageIndex = empty.Index
	ids := map[string]string{}
	for _, arch := range []string{"arm64", "amd64", "s390x"} {
		img := imageOf(t, gzipLayer(t, tarOf(t, "arch", arch)))
		cf, _ := img.ConfigFile()
		cf = cf.DeepCopy()
		cf.Architecture = arch
		img, _ = mutate.ConfigFile(img, cf)
		h, _ := img.ConfigName()
		ids[arch] = h.String()
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	ref, _ := name.ParseReference(addr+"/multi", name.Insecure)
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	top, _ := index.Digest()
	for arch, id := range ids {
		img, err := s.Pull(context.Background(), addr+"/multi", PullOptions{Platform: &ocispec.Platform{Architecture: arch}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if img.ID != id || img.Digests[0] != addr+"/multi@"+top.String() {
			t.Errorf("%s: got %s %v", arch, img.ID, img.Digests)
		}
	}
	_, err := s.Pull(context.Background(), addr+"/multi", PullOptions{Platform: &ocispec.Platform{Architecture: "riscv64"}}, nil)
	if err == nil || err.Error() != "no matching manifest for linux/riscv64 in the manifest list entries" {
		t.Errorf("got %v", err)
	}
}

func TestPullErrors(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	push(t, addr+"/x:1", imageOf(t, gzipLayer(t, tarOf(t, "a", "a"))))
	for ref, want := range map[string]string{
		addr + "/x:2":       "manifest for " + addr + "/x:2 not found: manifest unknown: manifest unknown",
		addr + "/none":      "manifest for " + addr + "/none:latest not found: manifest unknown: manifest unknown",
		"UPPER/case":        "invalid reference format",
		"10.255.255.1/x/y:": "invalid reference format",
	} {
		if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", ref, err, want)
		}
	}
	if _, err := s.Get("nothing"); !errors.Is(err, ErrNotFound) || err.Error() != "No such image: nothing:latest" {
		t.Errorf("got %v", err)
	}
	denied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
	}))
	defer denied.Close()
	host := strings.TrimPrefix(denied.URL, "http://")
	_, err := s.Pull(context.Background(), host+"/x", PullOptions{}, nil)
	if want := "pull access denied for " + host + "/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

// tamper stands between a store and a registry, and changes bodies.
type tamper func(path string, body []byte) []byte

func (f tamper) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent || req.Method != http.MethodGet {
		return resp, err
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	b = f(req.URL.Path, b)
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	resp.Header.Del("Content-Length")
	return resp, err
}

// TestPullTampered shows that a wrong byte anywhere leaves nothing behind.
func TestPullTampered(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	good := imageOf(t, gzipLayer(t, tarOf(t, "good", random(1, 1<<20))), gzipLayer(t, tarOf(t, "bad", random(2, 1<<20))))
	push(t, addr+"/x", good)
	layers, _ := good.Layers()
	bad, _ := layers[1].Digest()
	manifestDigest, _ := good.Digest()
	config, _ := good.ConfigName()
	byDigest := addr + "/x@" + manifestDigest.String()
	flip := func(what string, at int) tamper {
		return func(path string, b []byte) []byte {
			if strings.HasSuffix(path, what) {
				b[(len(b)+at)%len(b)] ^= 0x20
			}
			return b
		}
	}
	tests := map[string]tamper{
		"first byte of a layer": flip(bad.String(), 0),
		"some byte of a layer":  flip(bad.String(), 500_000),
		"last byte of a layer":  flip(bad.String(), -1),
		"configuration":         flip(config.String(), 30),
		"manifest":              flip(manifestDigest.String(), 30),
		"short layer": func(path string, b []byte) []byte {
			if strings.HasSuffix(path, bad.String()) {
				return b[:max(0, len(b)-100)]
			}
			return b
		},
		"long layer": func(path string, b []byte) []byte {
			if strings.HasSuffix(path, bad.String()) {
				return append(b, 0)
			}
			return b
		},
		"endless manifest": func(path string, b []byte) []byte {
			if strings.Contains(path, "/manifests/") {
				return append(b, bytes.Repeat([]byte(" "), maxDocument)...)
			}
			return b
		},
	}
	for what, tr := range tests {
		if _, err := s.Pull(context.Background(), byDigest, PullOptions{Transport: tr}, nil); err == nil {
			t.Errorf("%s: pulled", what)
		} else if strings.Contains(what, "byte of") && !strings.Contains(err.Error(), "error verifying sha256 checksum") {
			t.Errorf("%s: got %v", what, err)
		}
		if left := files(t, s); left != "" || len(s.holds) != 0 {
			t.Fatalf("%s: left behind\n%s %v", what, left, s.holds)
		}
	}
	// By its tag a manifest is only what the registry says it is.
	changed := func(path string, b []byte) []byte {
		if strings.Contains(path, "/manifests/") {
			return append(b, ' ')
		}
		return b
	}
	if _, err := s.Pull(context.Background(), addr+"/x", PullOptions{Transport: tamper(changed)}, nil); err == nil || !strings.Contains(err.Error(), "manifest has not the digest "+manifestDigest.String()) {
		t.Errorf("changed manifest of a tag: got %v", err)
	}
	// A configuration that lies about a layer's tar.
	liar, _ := mutate.ConfigFile(good, func() *v1.ConfigFile {
		cf, _ := good.ConfigFile()
		cf = cf.DeepCopy()
		cf.RootFS.DiffIDs[1].Hex = strings.Repeat("0", 64)
		return cf
	}())
	push(t, addr+"/liar", liar)
	if _, err := s.Pull(context.Background(), addr+"/liar", PullOptions{}, nil); err == nil || !strings.Contains(err.Error(), "uncompressed digest") {
		t.Errorf("liar: got %v", err)
	}
	if left := files(t, s); left != "" {
		t.Errorf("liar: left behind\n%s", left)
	}
	// And the untampered one.
	if _, err := s.Pull(context.Background(), byDigest, PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestPullLimit(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	s.SetLimits(Limits{LayerSize: 1 << 20, LayerEntries: 10, ArchiveSize: 1 << 20})
	push(t, addr+"/bomb", imageOf(t, gzipLayer(t, tarOf(t, "zeros", strings.Repeat("\x00", 8<<20)))))
	_, err := s.Pull(context.Background(), addr+"/bomb", PullOptions{}, nil)
	if err == nil || !strings.Contains(err.Error(), "more than the limit of 1048576 bytes") || files(t, s) != "" {
		t.Errorf("got %v, left %s", err, files(t, s))
	}
}

// TestPullCancel cancels while a layer arrives.
func TestPullCancel(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	push(t, addr+"/x", imageOf(t, gzipLayer(t, tarOf(t, "a", random(3, 8<<20)))))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := s.Pull(ctx, addr+"/x", PullOptions{}, func(p Progress) {
		if p.Status == "Downloading" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := files(t, s); left != "" {
		t.Errorf("left behind\n%s", left)
	}
}

// TestPullTogether pulls images that share a layer, many at once; the layer is
// transferred once.
func TestPullTogether(t *testing.T) {
	addr, s := startRegistry(t), openStore(t)
	base := gzipLayer(t, tarOf(t, "base", random(4, 4<<20)))
	digest, _ := base.Digest()
	for i := range 4 {
		push(t, fmt.Sprintf("%s/img:%d", addr, i), imageOf(t, base, gzipLayer(t, tarOf(t, "own", fmt.Sprint(i)))))
	}
	var mu sync.Mutex
	fetched := 0
	count := tamper(func(path string, b []byte) []byte {
		if strings.HasSuffix(path, digest.String()) {
			mu.Lock()
			fetched++
			mu.Unlock()
		}
		return b
	})
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), fmt.Sprintf("%s/img:%d", addr, i%4), PullOptions{Transport: count}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	images, err := s.List()
	if err != nil || len(images) != 4 || fetched != 1 || len(s.holds) != 0 {
		t.Errorf("%d images, shared layer fetched %d times, holds %v, %v", len(images), fetched, s.holds, err)
	}
}

func TestGuard(t *testing.T) {
	ok := roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})
	for _, tt := range []struct {
		loopback bool
		url      string
		ok       bool
	}{
		{false, "https://registry.example/v2/", true},
		{false, "http://registry.example/v2/", false},
		{false, "http://10.0.0.1:5000/v2/", false},
		{false, "https://127.0.0.1/v2/", false},
		{false, "https://[::1]:8443/v2/", false},
		{false, "http://localhost:2375/", false},
		{true, "http://localhost:5000/v2/", true},
		{true, "http://127.8.9.1:5000/v2/", true},
		{true, "http://[::1]:5000/v2/", true},
		{true, "http://registry.example/v2/", false},
	} {
		req := httptest.NewRequest(http.MethodGet, tt.url, nil)
		if _, err := (&guard{host: "registry.example", own: ok, foreign: ok, loopback: tt.loopback}).RoundTrip(req); (err == nil) != tt.ok {
			t.Errorf("registry on this machine: %v, %s: %v", tt.loopback, tt.url, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestOpenCleans shows what a crash can leave, and that Open removes it.
func TestOpenCleans(t *testing.T) {
	s := openStore(t)
	for _, p := range []string{"tmp/layer-1", "layers/" + strings.Repeat("a", 64) + ".erofs", "blobs/" + strings.Repeat("b", 64), "recipes/" + strings.Repeat("c", 64)} {
		if err := os.WriteFile(s.path(p), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(s.dir, s.log)
	if err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); left != "" {
		t.Errorf("left behind\n%s", left)
	}
}
