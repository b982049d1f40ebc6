package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"sampan/host/imagetest"
)

// passwords is an htpasswd file: user "me", password "secret".
const passwords = "me:$2a$05$g8wwPhPwMSGR7XAt6hhGe.s0jLd7TPlzy.SzTE2BfksWEXpMtCXCS\n"

// A registry that wants a password, by both clients: login, push, pull, what it
// has already, logout, by Docker's configuration and by a credential helper.
func TestPush(t *testing.T) {
	h := newHome(t)
	h.load(t)
	file := filepath.Join(t.TempDir(), "passwords")
	if err := os.WriteFile(file, []byte(passwords), 0o644); err != nil {
		t.Fatal(err)
	}
	addr := startRegistry(t, fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s\n", file))
	ref := addr + "/team/busybox:1"
	h.sampan(t, "tag", "busybox", ref)

	fails := func(words string, args ...string) {
		t.Helper()
		for _, cli := range []string{"sampan", "docker"} {
			if r := h.try(t, "", cli, args...); r.code != 1 || !strings.Contains(r.stderr, words) {
				t.Errorf("%s %q: %+v, want the words %q", cli, args, r, words)
			}
		}
	}
	fails("unauthorized: authentication required", "push", ref)
	fails("401 Unauthorized", "login", "-u", "me", "-p", "wrong", addr)
	fails("the --password-stdin option requires --username to be set", "login", "--password-stdin", addr)

	config := filepath.Join(h.dir, "docker-client", "config.json")
	var pushes []string
	for _, cli := range []string{"sampan", "docker"} {
		if r := h.try(t, "secret\n", cli, "login", "-u", "me", "--password-stdin", addr); r.code != 0 || !strings.Contains(r.stdout, "Login Succeeded") {
			t.Fatalf("%s login: %+v", cli, r)
		}
		if b, err := os.ReadFile(config); err != nil || !strings.Contains(string(b), `"`+addr+`"`) {
			t.Errorf("%s login: %s, %v", cli, b, err)
		}
		pushes = append(pushes, h.must(t, cli, "push", ref))
		h.must(t, cli, "pull", ref)
		if out := h.must(t, cli, "logout", addr); out != "Removing login credentials for "+addr+"\n" {
			t.Errorf("%s logout: %q", cli, out)
		}
		if b, err := os.ReadFile(config); err != nil || strings.Contains(string(b), addr) {
			t.Errorf("%s logout: %s, %v", cli, b, err)
		}
	}
	if !strings.Contains(pushes[0], ": Pushed\n") || !strings.Contains(pushes[1], ": Layer already exists\n") {
		t.Errorf("pushes printed:\n%s\n%s", pushes[0], pushes[1])
	}
	if a, b := lastLine(pushes[0]), lastLine(pushes[1]); a != b || !strings.HasPrefix(a, "1: digest: sha256:") {
		t.Errorf("pushed as %q, then as %q", a, b)
	}
	fails("unauthorized: authentication required", "pull", ref)

	// A helper keeps the password instead.
	dir := t.TempDir()
	helper := "#!/bin/sh\ncase $1 in store) cat >" + dir + "/kept;; get) cat " + dir + "/kept;; erase) rm " + dir + "/kept;; list) echo '{}';; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(`{"credsStore":"test"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env, "PATH="+dir+":"+files.bin+":"+os.Getenv("PATH"))
	if r := h.try(t, "secret", "sampan", "login", "-u", "me", "--password-stdin", addr); r.code != 0 || strings.Contains(r.stderr, "unencrypted") {
		t.Errorf("login with a helper: %+v", r)
	}
	var kept struct{ ServerURL, Username, Secret string }
	if b, err := os.ReadFile(filepath.Join(dir, "kept")); err != nil || json.Unmarshal(b, &kept) != nil || kept.Secret != "secret" || kept.ServerURL != addr {
		t.Errorf("the helper got %s, %v", b, err)
	}
	h.sampan(t, "pull", "-q", ref)
	h.sampan(t, "logout", addr)
	if _, err := os.Stat(filepath.Join(dir, "kept")); err == nil {
		t.Error("the helper still has the password")
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// On a terminal every layer has a bar, its bytes, and how fast they come.
func TestProgressBars(t *testing.T) {
	data := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{6}).Read(data)
	layer, err := imagetest.Layer(imagetest.File{Name: "large", Data: data})
	if err != nil {
		t.Fatal(err)
	}
	img, err := imagetest.Image(v1.Config{}, layer)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{})
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.String()) {
			w = &slow{w, seen}
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/slow:1"
	if err := imagetest.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	w := newTerminal(t, h)
	w.tmux("resize-window", "-x", "112", "-y", "30") // no bars in less than 111 columns
	w.typ(filepath.Join(files.bin, "sampan") + " pull " + ref)
	w.sees("MB/s")
	screen := w.tmux("capture-pane", "-p")
	if !regexp.MustCompile(`(?m)^` + digest.Hex[:12] + `: Downloading +[0-9.]+MB/s \[=*> *\] +[0-9.]+MB/25\.\d+MB`).MatchString(screen) {
		t.Errorf("no bar in\n%s", screen)
	}
	close(seen)
	w.sees("Status: Downloaded newer image")
	if screen = w.tmux("capture-pane", "-p"); !strings.Contains(screen, digest.Hex[:12]+": Pull complete") {
		t.Errorf("at the end:\n%s", screen)
	}
}

// slow is a connection of a few MiB a second, until the bar has been seen.
type slow struct {
	http.ResponseWriter
	seen <-chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := s.ResponseWriter.Write(p[n:min(n+(256<<10), len(p))])
		if n += m; err != nil {
			return n, err
		}
		select {
		case <-s.seen:
		case <-time.After(50 * time.Millisecond):
		}
	}
	return n, nil
}
