package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shortDir is a temporary folder whose sockets have short paths.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sampand-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestHome(t *testing.T) {
	dir := filepath.Join(shortDir(t), "a", "home")
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := h.listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.writePid(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, "docker.sock": 0o600, "sampand.pid": 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%q: %v, %v; want mode %o", name, fi.Mode(), err, want)
		}
	}
	if _, err := openHome(dir); !errors.Is(err, errRunning) {
		t.Errorf("second daemon: %v", err)
	}
	ln.Close()
	h.close()
	if _, err := os.Stat(h.path("sampand.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pid outlived its daemon: %v", err)
	}
}

// A daemon that is ending hands its home over.
func TestHomeTakeOver(t *testing.T) {
	dir := filepath.Join(shortDir(t), "home")
	first, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, first.close)
	second, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	second.close()
}

// A socket that a crash has left is replaced.
func TestHomeOldSocket(t *testing.T) {
	dir := filepath.Join(shortDir(t), "home")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	if err := os.WriteFile(filepath.Join(dir, "sampand.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	ln, err := h.listen()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestHomeRefused(t *testing.T) {
	dir := shortDir(t)
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(full, "thesis.txt"), filepath.Join(dir, "file")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		full:                       "holds other files",
		filepath.Join(dir, "file"): "not a directory",
		filepath.Join(dir, strings.Repeat("x", 100)): "choose a shorter one",
	} {
		if _, err := openHome(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	if fi, err := os.Stat(full); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("a refused folder was changed: %v, %v", fi.Mode(), err)
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if c, err := readConfig(path); err != nil || c.Machine.CPUs < 1 || c.Machine.Memory != 2<<30 {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"[machine]\ncpus = 3\nmemory = \"512MiB\"\ndisk = \"8GiB\"\nidle = \"10s\"\naccelerator = \"tcg\"\n": "",
		"[machine]\ncpu = 3\n":                       `unknown key "machine.cpu"`,
		"[machine]\ncpus = 0\n":                      "want at least 1",
		"[machine]\nmemory = \"1MiB\"\n":             "want at least 256MiB",
		"[machine]\nmemory = \"lots\"\n":             "lots",
		"[machine]\ndisk = \"1\"\n":                  "want at least 1GiB",
		"[machine]\nidle = \"-1s\"\n":                "negative",
		"[machine]\naccelerator = \"gpu\"\n":         "want auto, kvm or tcg",
		"cpus = ":                                    "config.toml",
		"[network]\nuplink = \"10.0.0.0/8\"\n":       "want an IPv4 /24",
		"[network]\nuplink = \"here\"\n":             "here",
		"[[network.pools]]\nbase = \"10.0.0.0/8\"\n": "network.pools, number 1: size is 0: want 8 to 30",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig(path)
		switch {
		case want == "" && (err != nil || c.Machine.CPUs != 3 || c.Machine.Memory != 512<<20 || c.Machine.Disk != 8<<30 || time.Duration(c.Machine.Idle) != 10*time.Second):
			t.Errorf("%q: %+v, %v", text, c, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
