package e2e_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A registry with TLS of an authority that only certs.d knows, and tokens of a
// server elsewhere, as large registries have it: both clients log in, push and
// pull; who has not logged in may pull what is public.
func TestTokens(t *testing.T) {
	host := otherAddress()
	if host == "" {
		skip(t, "this machine has no address but loopback's, where registries may do without TLS")
	}
	certFile, keyFile := makeCertificate(t, t.TempDir(), host)
	tokens := startTokens(t, host, certFile, keyFile)
	addr := startRegistryAt(t, host,
		fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n", certFile, keyFile),
		fmt.Sprintf("auth:\n  token:\n    realm: %s/token\n    service: test\n    issuer: tester\n    rootcertbundle: %s\n", tokens.URL, certFile))
	h := newHome(t)
	authority, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(h.dir, "certs.d", addr)
	if err := os.MkdirAll(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, "ca.crt"), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	h.load(t)
	private, public := addr+"/team/busybox:1", addr+"/public/busybox:1"
	h.sampan(t, "tag", "busybox", private)
	h.sampan(t, "tag", "busybox", public)

	fails := func(words string, args ...string) {
		t.Helper()
		for _, cli := range []string{"sampan", "docker"} {
			if r := h.try(t, "", cli, args...); r.code != 1 || !strings.Contains(r.stderr, words) {
				t.Errorf("%s %q: %+v, want the words %q", cli, args, r, words)
			}
		}
	}
	fails("authentication required", "push", private)
	fails("401 Unauthorized", "login", "-u", "me", "-p", "wrong", addr)
	for _, cli := range []string{"sampan", "docker"} {
		if r := h.try(t, "secret\n", cli, "login", "-u", "me", "--password-stdin", addr); r.code != 0 || !strings.Contains(r.stdout, "Login Succeeded") || strings.Count(r.stderr, "unencrypted") != 1 {
			t.Fatalf("%s login: %+v", cli, r)
		}
		for _, ref := range []string{private, public} {
			if out := h.must(t, cli, "push", ref); !strings.Contains(out, "1: digest: sha256:") {
				t.Errorf("%s push: %s", cli, out)
			}
		}
		h.must(t, cli, "logout", addr)
		h.sampan(t, "rmi", public)
		if out := h.must(t, cli, "pull", public); !strings.Contains(out, "Downloaded newer image") {
			t.Errorf("%s pull: %s", cli, out)
		}
		fails("authentication required", "pull", private)
		fails("authentication required", "push", public)
	}
	tokens.mu.Lock()
	defer tokens.mu.Unlock()
	for _, want := range []string{"me repository:team/busybox:push,pull", " repository:public/busybox:pull"} {
		if !tokens.asked[want] {
			t.Errorf("nobody asked for %q, but for %v", want, tokens.asked)
		}
	}
}

// tokenServer gives tokens as Docker's specification has them: everything to
// user "me" with the password "secret", and to anybody to pull what is public.
type tokenServer struct {
	*httptest.Server
	t       *testing.T
	key     *ecdsa.PrivateKey
	cert    []byte
	mu      sync.Mutex
	asked   map[string]bool // user and scope
	counter int
}

func startTokens(t *testing.T, host, certFile, keyFile string) *tokenServer {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{t: t, key: pair.PrivateKey.(*ecdsa.PrivateKey), cert: pair.Certificate[0], asked: map[string]bool{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Listener.Close()
	if s.Listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, given := r.BasicAuth()
	if given && (user != "me" || password != "secret") || r.FormValue("service") != "test" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	allowed := []access{}
	for _, scope := range r.Form["scope"] {
		s.mu.Lock()
		s.asked[user+" "+scope] = true
		s.mu.Unlock()
		parts := strings.Split(scope, ":")
		if len(parts) != 3 {
			continue
		}
		actions := strings.Split(parts[2], ",")
		if !given {
			actions = nil
			if strings.HasPrefix(parts[1], "public/") {
				actions = []string{"pull"}
			}
		}
		allowed = append(allowed, access{parts[0], parts[1], actions})
	}
	token, err := s.token(user, allowed)
	if err != nil {
		s.t.Error(err)
	}
	json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 60})
}

func (s *tokenServer) token(user string, allowed []access) (string, error) {
	s.mu.Lock()
	s.counter++
	id := s.counter
	s.mu.Unlock()
	now := time.Now()
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{"iss": "tester", "sub": user, "aud": "test", "jti": fmt.Sprint(id),
		"exp": now.Add(time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(), "access": allowed})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	r, sig, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	both := make([]byte, 64)
	r.FillBytes(both[:32])
	sig.FillBytes(both[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(both), nil
}
