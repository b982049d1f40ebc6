package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
