package image

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/http/httpproxy"
)

// proxies are what Registries says, or the environment.
func (r Registries) proxies() *httpproxy.Config {
	if r.Proxies != nil {
		return r.Proxies
	}
	return httpproxy.FromEnvironment()
}

// Proxies are what requests to registries go through, without the passwords.
func (s *Store) Proxies() httpproxy.Config {
	p := *s.registries.proxies()
	p.HTTPProxy, p.HTTPSProxy = masked(p.HTTPProxy), masked(p.HTTPSProxy)
	return p
}

// masked hides who logs in at a proxy, as Docker does; also where the scheme is
// left out, which means http.
func masked(proxy string) string {
	at := strings.LastIndexByte(proxy, '@')
	if at < 0 {
		return proxy
	}
	scheme, _, ok := strings.Cut(proxy[:at], "://")
	if !ok {
		return "xxxxx:xxxxx" + proxy[at:]
	}
	return scheme + "://xxxxx:xxxxx" + proxy[at:]
}

// proxyHosts choose the proxy for a request, and remember which addresses are
// proxies'.
type proxyHosts struct {
	choose func(*url.URL) (*url.URL, error)

	mu    sync.Mutex
	hosts map[string]bool
}

func (p *proxyHosts) of(req *http.Request) (*url.URL, error) {
	u, err := p.choose(req.URL)
	if u != nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		if port == "" {
			port = "80"
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.hosts == nil {
			p.hosts = map[string]bool{}
		}
		p.hosts[net.JoinHostPort(u.Hostname(), port)] = true
	}
	return u, err
}

func (p *proxyHosts) has(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hosts[address]
}

// connected says which proxy it is that does not connect us, and to what: the
// library's error is its answer's text alone.
func connected(_ context.Context, proxy *url.URL, req *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("proxy %s does not connect to %s: %s", proxy.Host, req.Host, resp.Status)
}
