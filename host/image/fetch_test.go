package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// troubled is a registry whose answers about blobs may be spoiled.
type troubled struct {
	*httptest.Server
	host  string
	spoil atomic.Pointer[func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool]

	mu       sync.Mutex
	requests []string // "METHOD PATH RANGE"
}

func newTroubled(t testing.TB) *troubled {
	t.Helper()
	tr := &troubled{}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	tr.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.mu.Lock()
		tr.requests = append(tr.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
		tr.mu.Unlock()
		if spoil := tr.spoil.Load(); spoil != nil && (*spoil)(w, r, real) {
			return
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(tr.Close)
	tr.host = strings.TrimPrefix(tr.URL, "http://")
	return tr
}

func (tr *troubled) spoilBy(f func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool) {
	tr.spoil.Store(&f)
}

func (tr *troubled) count(part string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	n := 0
	for _, r := range tr.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// body is what the real registry answers.
func body(serve http.Handler, r *http.Request) []byte {
	r2 := r.Clone(r.Context())
	r2.Header.Del("Range")
	rec := httptest.NewRecorder()
	serve.ServeHTTP(rec, r2)
	return rec.Body.Bytes()
}

// pushed is an image of one large layer in the registry, and its digest.
func (tr *troubled) push(t testing.TB) (ref, digest string) {
	t.Helper()
	img := imageOf(t, gzipLayer(t, tarOf(t, "file", random(7, 1<<20))))
	push(t, tr.host+"/x", img)
	layers, _ := img.Layers()
	d, _ := layers[0].Digest()
	return tr.host + "/x", d.String()
}

func isBlob(r *http.Request, digest string) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+digest)
}

// A connection that breaks again and again costs only what was not yet there.
func TestResume(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, digest := tr.push(t)
	var sent atomic.Int64
	var breaks atomic.Int32
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
		if !isBlob(r, digest) {
			return false
		}
		b := body(serve, r)
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
			w.Header().Set("Content-Length", strconv.Itoa(len(b)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		}
		end := len(b)
		if breaks.Add(1) <= 7 { // more often than it may fail in a row
			end = min(len(b), from+100_000)
		}
		w.Write(b[from:end])
		sent.Add(int64(end - from))
		if end < len(b) {
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		return true
	})
	var r recorder
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, r.tell); err != nil {
		t.Fatal(err)
	}
	if breaks.Load() != 8 || sent.Load() > 1<<20+10_000 {
		t.Errorf("%d requests, %d bytes sent", breaks.Load(), sent.Load())
	}
	if !strings.Contains(strings.Join(r.lines, "\n"), "Retrying in 1 second") {
		t.Errorf("progress:\n%s", strings.Join(r.lines, "\n"))
	}
}

// A registry that knows no ranges sends all again; one that never gets on is
// given up; nothing stays.
func TestResumeWithoutRanges(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, digest := tr.push(t)
	var n atomic.Int32
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
		if !isBlob(r, digest) {
			return false
		}
		b := body(serve, r)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		if n.Add(1) == 1 {
			w.Write(b[:500_000])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Write(b)
		return true
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err != nil || n.Load() != 2 {
		t.Errorf("%d requests, %v", n.Load(), err)
	}
	s = openStore(t)
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
		if isBlob(r, digest) {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	before := tr.count("/blobs/" + digest)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err == nil || files(t, s) != "" {
		t.Errorf("got %v, left %q", err, files(t, s))
	}
	if n := tr.count("/blobs/"+digest) - before; n < attempts || n > 2*attempts { // the transport repeats some by itself
		t.Errorf("%d requests, want %d", n, attempts)
	}
}

// A registry that answers a range by another one, or lies about where it
// begins, is refused.
func TestResumeLies(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, digest := tr.push(t)
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
		if !isBlob(r, digest) {
			return false
		}
		b := body(serve, r)
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(b)-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(b[5:])
			return true
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b[:500_000])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err == nil || !strings.Contains(err.Error(), `with the range "bytes 5-`) || files(t, s) != "" {
		t.Errorf("got %v, left %q", err, files(t, s))
	}
}

// A registry that sends nothing more is left after a while.
func TestStall(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	s.SetLimits(Limits{Stall: 200 * time.Millisecond})
	ref, digest := tr.push(t)
	var n atomic.Int32
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, serve http.Handler) bool {
		if !isBlob(r, digest) {
			return false
		}
		b := body(serve, r)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		if n.Add(1) > 2 {
			w.Write(b)
			return true
		}
		w.Write(b[:300_000])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if n.Load() != 3 {
		t.Errorf("%d requests, want 3", n.Load())
	}
}

// stuck is a body of which no more comes than the beginning, until it is closed.
type stuck struct {
	beginning io.Reader
	closed    chan struct{}
	once      sync.Once
}

func newStuck(beginning []byte) *stuck {
	return &stuck{beginning: bytes.NewReader(beginning), closed: make(chan struct{})}
}

func (s *stuck) Read(p []byte) (int, error) {
	if n, err := s.beginning.Read(p); err == nil {
		return n, nil
	}
	<-s.closed
	return 0, errors.New("closed")
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Every answer may stall only so long: also what a registry without ranges
// sends once more, and a manifest.
func TestStallAnywhere(t *testing.T) {
	blob := []byte(random(3, 1000))
	var bodies []io.ReadCloser
	rt := roundTrip(func(req *http.Request) (*http.Response, error) {
		b := bodies[0]
		bodies = bodies[1:]
		return &http.Response{StatusCode: http.StatusOK, Body: b, Header: http.Header{}, Request: req}, nil
	})
	s := openStore(t)
	s.SetLimits(Limits{Stall: time.Millisecond})
	base, err := s.transport("registry.test", rt)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: base}
	bodies = []io.ReadCloser{newStuck(blob[:500]), newStuck(blob[:300]), io.NopCloser(bytes.NewReader(blob))}
	f := &fetcher{client: client, base: "https://registry.test/v2/x/blobs/"}
	r, err := f.blob(context.Background(), ocispec.Descriptor{Digest: digest.Digest(digestOf(blob)), Size: int64(len(blob))}, func(time.Duration) {})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) || len(bodies) != 0 {
		t.Errorf("blob: %d bytes, %v, %d answers left", len(got), err, len(bodies))
	}
	for _, path := range []string{"/v2/x/manifests/latest", "/token"} {
		bodies = []io.ReadCloser{newStuck([]byte("{"))}
		resp, err := client.Get("https://registry.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err == nil || !strings.Contains(err.Error(), "has sent nothing for 1ms") {
			t.Errorf("%s: %v", path, err)
		}
		resp.Body.Close()
	}
}

// An overloaded registry is asked again: as late as it says, and not if that
// is too late.
func TestOverloaded(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, digest := tr.push(t)
	var n atomic.Int32
	var asked, allowed atomic.Int64
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/") && n.Add(1) == 1:
			w.Header().Set("Retry-After", "1")
			allowed.Store(time.Now().Add(time.Second).UnixNano())
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		case strings.Contains(r.URL.Path, "/manifests/") && n.Load() == 2:
			asked.Store(time.Now().UnixNano())
		case isBlob(r, digest) && n.Add(1) == 3:
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if asked.Load() < allowed.Load() {
		t.Error("asked again before the registry allowed it")
	}
	s = openStore(t)
	tr.spoilBy(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("got %v", err)
	}
}

func TestPause(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		n          int
		retryAfter string
		least, max time.Duration
	}{
		{1, "", 250 * time.Millisecond, 375 * time.Millisecond},
		{4, "nonsense", 2 * time.Second, 3 * time.Second},
		{1, "7", 7 * time.Second, 7 * time.Second},
		{1, "99999999999", 250 * time.Millisecond, 1 << 62},
		{1, now.Add(90 * time.Second).UTC().Format(http.TimeFormat), 90 * time.Second, 90 * time.Second},
		{1, now.Add(-time.Hour).UTC().Format(http.TimeFormat), 0, 0},
	} {
		if d := pause(c.n, c.retryAfter, now); d < c.least || d > c.max {
			t.Errorf("pause(%d, %q) = %s", c.n, c.retryAfter, d)
		}
	}
}

// What a mirror has comes from it, the rest from the registry; the image gets
// the registry's name, and the mirror none of its credentials.
func TestMirror(t *testing.T) {
	own, mirror, s := newTroubled(t), newTroubled(t), openStore(t)
	ref, digest := own.push(t)
	push(t, mirror.host+"/x", imageOf(t, gzipLayer(t, tarOf(t, "file", random(7, 1<<20)))))
	s.SetRegistries(Registries{Hosts: map[string]Registry{own.host: {Mirrors: []string{mirror.URL}}}})
	img, err := s.Pull(context.Background(), ref, PullOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if mirror.count("GET /v2/x/blobs/"+digest) != 1 || own.count("GET /v2/x/blobs/") != 0 || img.Tags[0] != ref+":latest" {
		t.Errorf("%d, %d, %q", mirror.count("GET /v2/x/blobs/"+digest), own.count("GET /v2/x/blobs/"), img.Tags)
	}
	push(t, own.host+"/only/here", imageOf(t, gzipLayer(t, tarOf(t, "file", "here"))))
	if _, err := s.Pull(context.Background(), own.host+"/only/here", PullOptions{}, nil); err != nil || mirror.count("GET /v2/only/here/manifests/latest") == 0 {
		t.Errorf("%v", err)
	}
	mirror.Close()
	push(t, own.host+"/third", imageOf(t, gzipLayer(t, tarOf(t, "file", "third"))))
	if _, err := s.Pull(context.Background(), own.host+"/third", PullOptions{}, nil); err != nil {
		t.Errorf("with a mirror that is down: %v", err)
	}
}

func TestRegistriesValidate(t *testing.T) {
	for _, bad := range []Registries{
		{Hosts: map[string]Registry{"https://x": {}}}, {Hosts: map[string]Registry{"": {}}},
		{Hosts: map[string]Registry{"x": {Mirrors: []string{"y"}}}}, {Hosts: map[string]Registry{"x": {Mirrors: []string{"https://y/path"}}}},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

// A registry that isn't on this machine can't lead us to what is, whatever it
// calls it; nor to plain HTTP.
func TestGuardForeign(t *testing.T) {
	var reached atomic.Bool
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer inner.Close()
	port := inner.URL[strings.LastIndexByte(inner.URL, ':'):]
	s := openStore(t)
	rt, err := s.transport("registry.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{
		"http://127.0.0.1" + port, "http://localhost" + port, "http://[::1]" + port, "https://127.1" + port, "https://0.0.0.0" + port,
		"https://[::ffff:127.0.0.1]" + port, "https://169.254.169.254/latest", "http://example.test/", "https://2130706433" + port,
	} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		resp, err := rt.RoundTrip(req.WithContext(ctx))
		cancel()
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: went there", url)
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if reached.Load() {
		t.Error("a service of this machine was reached")
	}
}

// A manifest with very many layers, or references that lead nowhere, is
// refused before anything is transferred.
func TestHostileManifests(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, _ := tr.push(t)
	for name, doc := range map[string]string{
		"layers": `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"sha256:` + strings.Repeat("a", 64) + `"},"layers":[` +
			strings.Repeat(`{},`, 99_999) + `{}]}`,
		"path":     `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"sha256:../../../../etc/passwd"}}`,
		"negative": `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":-1,"digest":"sha256:` + strings.Repeat("a", 64) + `"}}`,
		"nothing":  ``, "list": `[]`, "deep": strings.Repeat("[", 100_000),
	} {
		tr.spoilBy(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
			io.WriteString(w, doc)
			return true
		})
		before := tr.count("/blobs/")
		if _, err := s.Pull(context.Background(), ref, PullOptions{}, nil); err == nil || files(t, s) != "" || len(err.Error()) > 1000 {
			t.Errorf("%s: got %v, left %q", name, err, files(t, s))
		}
		if name == "layers" && tr.count("/blobs/") != before {
			t.Errorf("%s: blobs were asked for", name)
		}
	}
}

// Certificates of a folder like Docker's certs.d.
func TestCerts(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "r.test:5000"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "r.test:5000", "ca.crt"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Registries{Certs: []string{dir, filepath.Join(dir, "missing")}}
	if _, err := tlsConfig("r.test:5000", r); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Errorf("got %v", err)
	}
	if conf, err := tlsConfig("other.test", r); err != nil || conf.RootCAs != nil || conf.InsecureSkipVerify {
		t.Errorf("got %+v, %v", conf, err)
	}
}

// A registry over TLS whose authority only certs.d knows, and which wants a
// certificate of ours; and one that the configuration calls insecure.
func TestTLS(t *testing.T) {
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(real)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	// Under another name than loopback's, which may do without all this.
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(srv.URL, "https://"))
	host := "example.com:" + port // as the test server's certificate says
	dir := t.TempDir()
	own := filepath.Join(dir, host)
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	key, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca.crt": authority, "client.cert": authority, "client.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(filepath.Join(own, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get := func(r Registries) error {
		s := openStore(t)
		s.SetRegistries(r)
		pair, err := s.transports.of(host, r)
		if err != nil {
			return err
		}
		pair.own.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		}
		pair.own.Proxy = nil
		rt, err := s.transport(host, nil)
		if err != nil {
			return err
		}
		req, err := http.NewRequest(http.MethodGet, "https://"+host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := rt.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(Registries{Certs: []string{dir}}); err != nil {
		t.Errorf("with its certificates: %v", err)
	}
	if err := get(Registries{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without: %v", err)
	}
	if err := os.Remove(filepath.Join(own, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	if err := get(Registries{Certs: []string{dir}, Hosts: map[string]Registry{host: {Insecure: true}}}); err != nil {
		t.Errorf("insecure: %v", err)
	}
}

// A registry on this machine may have certificates that nobody vouches for, and
// so may what it points to on this machine; nothing else may.
func TestTLSLoopback(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	s := openStore(t)
	pair, err := s.transports.of("localhost:5000", Registries{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []*http.Transport{pair.own, pair.foreign} {
		tr.Proxy = nil
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		}
	}
	rt, err := s.transport("localhost:5000", nil)
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string) error {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := rt.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for _, url := range []string{"https://localhost:5000/v2/", "https://localhost:5001/token", "https://127.0.0.1:5002/token"} {
		if err := get(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := get("https://auth.test/token"); err == nil || !strings.Contains(err.Error(), "certificate") || asked.Load() != 3 {
		t.Errorf("somewhere else: %v, %d requests", err, asked.Load())
	}
}
