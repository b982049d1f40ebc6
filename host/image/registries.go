package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/net/http/httpproxy"
)

// Registries says how registries are spoken to. The zero value is right for
// most: TLS by the system's certificates, plain HTTP on this machine.
type Registries struct {
	// Hosts by their names, with the port if there is one. Optional.
	Hosts map[string]Registry
	// Certs are folders like Docker's certs.d: HOST[:PORT]/NAME.crt are
	// authorities for that host, NAME.cert with NAME.key what we show to it.
	// A folder that is missing is no error. Optional.
	Certs []string
	// Proxies for all of them. Optional: as the environment says.
	Proxies *httpproxy.Config
}

// Registry is one host of Registries.
type Registry struct {
	// Mirrors are asked first, by their URLs; what they don't have comes
	// from the registry. Optional.
	Mirrors []string
	// Insecure registries may use plain HTTP, and certificates that nobody
	// vouches for.
	Insecure bool
}

// Validate finds what can't be meant.
func (r Registries) Validate() error {
	for host, reg := range r.Hosts {
		if host == "" || strings.ContainsAny(host, "/ ") {
			return fmt.Errorf("registry %q: want HOST or HOST:PORT", host)
		}
		for _, m := range reg.Mirrors {
			if u, err := url.Parse(m); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
				return fmt.Errorf("mirror %q of %s: want https://HOST or http://HOST", m, host)
			}
		}
	}
	return nil
}

// SetRegistries changes how registries are spoken to. It is called before
// anything else.
func (s *Store) SetRegistries(r Registries) { s.registries = r }

// insecure reports whether a registry may do without TLS.
func (r Registries) insecure(host string) bool {
	if r.Hosts[host].Insecure || isLoopback(host) {
		return true
	}
	for _, reg := range r.Hosts {
		for _, m := range reg.Mirrors {
			if m == "http://"+host || m == "http://"+host+"/" {
				return true
			}
		}
	}
	return false
}

// nameOptions say how a registry is spoken to.
func (s *Store) nameOptions(host string) []name.Option {
	if s.registries.insecure(host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// transports are those of the registries that were spoken to, which keep
// connections.
type transports struct {
	mu     sync.Mutex
	byHost map[string]transportPair
}

// transportPair is what goes to a registry, and to where it points: what the
// configuration says of the one holds for no other.
type transportPair struct {
	own, foreign *http.Transport
	asked        *atomic.Bool // the registry wants to see a certificate, and there is none
}

// transport carries requests to a registry. A base replaces what goes over the
// network, in tests.
func (s *Store) transport(host string, base http.RoundTripper) (http.RoundTripper, error) {
	if host == name.DefaultRegistry {
		host = "docker.io" // as people and configurations call it
	}
	g := &guard{host: host, insecure: s.registries.insecure(host), loopback: isLoopback(host), stall: s.limits.Stall, own: base, foreign: base}
	if base == nil {
		pair, err := s.transports.of(host, s.registries)
		if err != nil {
			return nil, err
		}
		g.own, g.foreign, g.asked = pair.own, pair.foreign, pair.asked
	}
	return &retrying{base: g, log: s.log}, nil
}

func (t *transports) of(host string, r Registries) (transportPair, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pair, ok := t.byHost[host]; ok {
		return pair, nil
	}
	conf, err := tlsConfig(host, r)
	if err != nil {
		return transportPair{}, err
	}
	control := notHere
	if isLoopback(host) {
		control = nil
	}
	pair := transportPair{asked: new(atomic.Bool), own: newTransport(r, nil), foreign: newTransport(r, control)}
	pair.own.TLSClientConfig = conf
	if len(conf.Certificates) == 0 {
		// What happens then says little: in TLS 1.3 the refusal comes late.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair.asked.Store(true)
			return &tls.Certificate{}, nil
		}
	}
	// An authority that is trusted for the registry is so for what it names, its
	// server of tokens above all; as Docker has it.
	pair.foreign.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: conf.RootCAs}
	if t.byHost == nil {
		t.byHost = map[string]transportPair{}
	}
	t.byHost[host] = pair
	return pair, nil
}

func newTransport(r Registries, control func(network, address string, c syscall.RawConn) error) *http.Transport {
	direct := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: control}
	proxied := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	proxies := &proxyHosts{choose: r.proxies().ProxyFunc()}
	return &http.Transport{
		Proxy:                  proxies.of,
		OnProxyConnectResponse: connected,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if proxies.has(address) { // which may well be on this machine
				return proxied.DialContext(ctx, network, address)
			}
			return direct.DialContext(ctx, network, address)
		},
		ForceAttemptHTTP2: true, MaxIdleConns: 100, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 30 * time.Second, ExpectContinueTimeout: time.Second, ResponseHeaderTimeout: 5 * time.Minute,
	}
}

// errHere is where registries may not lead us.
var errHere = errors.New("registry points to this machine")

// notHere keeps connections from going to this machine, whatever the name that
// has led there.
func notHere(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := ap.Addr().Unmap(); ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return fmt.Errorf("%w (%s)", errHere, address)
	}
	return nil
}

// tlsConfig reads a host's certificates.
func tlsConfig(host string, r Registries) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: r.Hosts[host].Insecure || isLoopback(host)}
	for _, certs := range r.Certs {
		dir := filepath.Join(certs, host)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("certificates of %s: %w", host, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch filepath.Ext(e.Name()) {
			case ".crt":
				if err := addAuthority(conf, path); err != nil {
					return nil, fmt.Errorf("certificates of %s: %w", host, err)
				}
			case ".cert":
				pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
				if err != nil {
					return nil, fmt.Errorf("certificates of %s: %w", host, err)
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
		}
	}
	return conf, nil
}

func addAuthority(conf *tls.Config, path string) error {
	if conf.RootCAs == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return err
		}
		conf.RootCAs = pool
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !conf.RootCAs.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s: no certificate in it", path)
	}
	return nil
}
