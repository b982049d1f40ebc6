package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"sampan/host/imagetest"
)

// foreignArch is an architecture that the guest has not.
func foreignArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// multiPlatform is an index of busybox for this machine, and of something else
// for another architecture.
func multiPlatform(t *testing.T) v1.ImageIndex {
	t.Helper()
	layer, err := imagetest.Layer(imagetest.File{Name: "foreign", Data: []byte("foreign")})
	if err != nil {
		t.Fatal(err)
	}
	other, err := imagetest.Image(v1.Config{Cmd: []string{"/foreign"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := other.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = foreignArch()
	if other, err = mutate.ConfigFile(other, config); err != nil {
		t.Fatal(err)
	}
	of := func(arch string) v1.Descriptor {
		return v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}
	}
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: of(foreignArch())},
		mutate.IndexAddendum{Add: imageFromArchive(t, "busybox.tar"), Descriptor: of(runtime.GOARCH)})
}

// Roads to registries that are not on loopback: certificates of ours that one
// wants to see, an index of several platforms there, mirrors, and proxies, as
// the daemon's environment and its configuration say.
func TestRoadsToRegistries(t *testing.T) {
	host := otherAddress()
	if host == "" {
		skip(t, "this machine has no address but loopback's, where registries do without certificates and proxies")
	}
	onceAsUser(t)
	certFile, keyFile := makeCertificate(t, t.TempDir(), host)
	strict := startRegistryAt(t, host, fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n    clientcas:\n      - %s\n", certFile, keyFile, certFile))
	plain := startRegistryAt(t, host)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	multi, copied := strict+"/team/multi:1", plain+"/team/busybox:1"
	ref, err := name.ParseReference(multi)
	if err != nil {
		t.Fatal(err)
	}
	index := multiPlatform(t)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	defer transport.CloseIdleConnections()
	if err := remote.WriteIndex(ref, index, remote.WithTransport(transport)); err != nil {
		t.Fatal(err)
	}
	if err := imagetest.Push(copied, imageFromArchive(t, "busybox.tar")); err != nil {
		t.Fatal(err)
	}

	h := newHome(t)
	write := func(path string, data []byte) {
		t.Helper()
		path = filepath.Join(h.dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := func(more string, env ...string) { // with another configuration and environment, and without images
		t.Helper()
		h.sampan(t, "image", "prune", "-af")
		h.sampan(t, "machine", "stop", "--daemon")
		write("config.toml", []byte(fmt.Sprintf("[registries.%q]\ninsecure = true\n", plain)+more))
		h.env = env
		h.sampan(t, "images") // the daemon that docker can't start
	}
	fails := func(words string, args ...string) {
		t.Helper()
		for _, cli := range []string{"sampan", "docker"} {
			if r := h.try(t, "", cli, args...); r.code != 1 || !strings.Contains(r.stderr, words) {
				t.Errorf("%s %q: %+v, want the words %q", cli, args, r, words)
			}
		}
		if out := h.sampan(t, "images", "-aq"); out != "" {
			t.Errorf("%q failed, and stored %q", args, out)
		}
	}

	// Without the certificate, and with it; one platform and the other.
	write("certs.d/"+strict+"/ca.crt", authority)
	fails(strict+" asks for a certificate, and certs.d has none for it", "pull", multi)
	write("certs.d/"+strict+"/client.cert", authority)
	write("certs.d/"+strict+"/client.key", key)
	again("")
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	fails("no matching manifest for linux/s390x in the manifest list entries", "pull", "--platform", "linux/s390x", multi)
	for _, c := range []struct{ cli, option, arch string }{
		{"docker", "", runtime.GOARCH}, {"sampan", "linux/" + foreignArch(), foreignArch()}, {"sampan", "", runtime.GOARCH},
	} {
		if out := h.must(t, c.cli, "pull", "--platform", c.option, multi); !strings.Contains(out, "Digest: "+digest.String()) {
			t.Errorf("%s pull --platform %q printed %s", c.cli, c.option, out)
		}
		if got := h.must(t, c.cli, "image", "inspect", "-f", "{{.Os}}/{{.Architecture}} {{.RepoDigests}}", multi); got != fmt.Sprintf("linux/%s [%s/team/multi@%s]\n", c.arch, strict, digest) {
			t.Errorf("%s pull --platform %q got %s", c.cli, c.option, got)
		}
	}

	// Mirrors are asked first, one after the other, and then the registry.
	again(fmt.Sprintf("[registries.\"far.test\"]\nmirrors = [\"https://%s\", \"http://%s\"]\n[registries.%q]\nmirrors = [\"http://%s\"]\n", strict, plain, strict, plain))
	for _, cli := range []string{"sampan", "docker"} {
		h.sampan(t, "image", "prune", "-af")
		if out := h.must(t, cli, "pull", "far.test/team/busybox:1"); !strings.Contains(out, "Status: Downloaded newer image for far.test/team/busybox:1") {
			t.Errorf("%s pull of what the second mirror has printed %s", cli, out)
		}
		h.must(t, cli, "pull", multi)
	}
	h.sampan(t, "image", "prune", "-af")
	fails("far.test", "pull", "far.test/team/nowhere")

	// Proxies: of the environment, by scheme; not for the hosts that it excepts.
	proxy := startProxy(t)
	again("", "HTTP_PROXY="+proxy.URL, "https_proxy="+proxy.URL)
	h.sampan(t, "pull", multi)
	h.sampan(t, "pull", copied)
	if got := proxy.seen(); got["CONNECT "+strict] == 0 || got["GET "+plain] == 0 || got["GET "+strict] != 0 {
		t.Errorf("the proxy has seen %v", got)
	}
	again("", "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=example.com,"+host)
	h.sampan(t, "pull", multi)
	h.must(t, "docker", "pull", copied)
	if got := proxy.seen(); len(got) != 0 {
		t.Errorf("for excepted hosts the proxy has seen %v", got)
	}

	// The configuration's go before those; a password shows nowhere.
	proxy.password(t, "me", "secret")
	with := strings.Replace(proxy.URL, "http://", "http://me:secret@", 1)
	again(fmt.Sprintf("[proxies]\nhttp-proxy = %q\nhttps-proxy = %q\nno-proxy = \"example.com\"\n", with, with),
		"HTTP_PROXY=http://127.0.0.1:1", "NO_PROXY=*")
	h.must(t, "docker", "pull", multi)
	h.sampan(t, "pull", copied)
	if got := proxy.seen(); got["CONNECT "+strict] == 0 || got["GET "+plain] == 0 {
		t.Errorf("the configured proxy has seen %v", got)
	}
	masked := strings.Replace(proxy.URL, "http://", "http://xxxxx:xxxxx@", 1)
	for _, cli := range []string{"sampan", "docker"} {
		out := h.must(t, cli, "info")
		for name, want := range map[string]string{"HTTP Proxy": masked, "HTTPS Proxy": masked, "No Proxy": "example.com"} {
			if !regexp.MustCompile(name + `: +` + regexp.QuoteMeta(want) + `\n`).MatchString(out) {
				t.Errorf("%s info has no %s %s:\n%s", cli, name, want, out)
			}
		}
	}

	// One that wants a password, and one that isn't there.
	address := strings.TrimPrefix(proxy.URL, "http://")
	again("", "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL)
	fails("proxy "+address+" does not connect to "+strict+": 407 Proxy Authentication Required", "pull", multi)
	again("", "HTTP_PROXY="+proxy.URL)
	fails("the proxy does not pass on "+plain+": 407 Proxy Authentication Required", "pull", copied)
	proxy.Close()
	fails("proxyconnect tcp: dial tcp "+address+": connect: connection refused", "pull", copied)
}

// countingProxy passes requests on and connects; it tells what it was asked for.
type countingProxy struct {
	*httptest.Server

	mu   sync.Mutex
	asks map[string]int // by method and host
	auth string         // that it wants, "" for none
}

func startProxy(t *testing.T) *countingProxy {
	p := &countingProxy{asks: map[string]int{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// seen returns what was asked for since the last time.
func (p *countingProxy) seen() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	asks := p.asks
	p.asks = map[string]int{}
	return asks
}

// password is asked for from now on.
func (p *countingProxy) password(t *testing.T, user, password string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.auth = req.Header.Get("Authorization")
}

func (p *countingProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asks[r.Method+" "+r.Host]++
	refused := p.auth != "" && r.Header.Get("Proxy-Authorization") != p.auth
	p.mu.Unlock()
	switch {
	case refused:
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.WriteHeader(http.StatusProxyAuthRequired)
	case r.Method == http.MethodConnect:
		p.connect(w, r.Host)
	default:
		r.RequestURI = ""
		r.Header.Del("Proxy-Authorization")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}
}

func (p *countingProxy) connect(w http.ResponseWriter, address string) {
	there, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		io.Copy(there, here)
		there.Close()
	}()
	io.Copy(here, there)
}
