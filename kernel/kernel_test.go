package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// makeBundle writes a small bundle into dir.
func makeBundle(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := Manifest{Schema: Schema, Arch: "amd64", Files: map[string]File{}}
	for _, name := range []string{KernelFile, InitrdFile} {
		text := []byte("content of " + name)
		sum := sha256.Sum256(text)
		m.Files[name] = File{Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:])}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	writeManifest(t, dir, m)
	return dir
}

func writeManifest(t *testing.T, dir string, m Manifest) {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ManifestFile), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenVerify(t *testing.T) {
	tests := []struct {
		name        string
		spoil       func(dir string) error
		open, check string // what the errors say; empty: none
	}{
		{"whole", func(string) error { return nil }, "", ""},
		{"no manifest", func(d string) error { return os.Remove(filepath.Join(d, ManifestFile)) }, "run `make guest`", ""},
		{"no JSON", func(d string) error { return os.WriteFile(filepath.Join(d, ManifestFile), []byte("{"), 0o644) }, "unexpected end", ""},
		{"old schema", func(d string) error {
			return os.WriteFile(filepath.Join(d, ManifestFile), []byte(`{"schema":0}`), 0o644)
		}, "schema 0, not 2", ""},
		{"no digest", func(d string) error {
			return os.WriteFile(filepath.Join(d, ManifestFile), []byte(`{"schema":2,"files":{"vmlinuz":{}}}`), 0o644)
		}, "lacks initrd.zst", ""},
		{"file missing", func(d string) error { return os.Remove(filepath.Join(d, InitrdFile)) }, "", "initrd.zst: no such file"},
		{"byte changed", func(d string) error {
			return os.WriteFile(filepath.Join(d, InitrdFile), []byte("content of initrd.zsT"), 0o644)
		}, "", "initrd.zst has sha256"},
		{"truncated", func(d string) error { return os.Truncate(filepath.Join(d, KernelFile), 3) }, "", "vmlinuz has 3 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := makeBundle(t, t.TempDir())
			if err := tt.spoil(dir); err != nil {
				t.Fatal(err)
			}
			b, err := Open(dir)
			wantError(t, "Open", err, tt.open)
			if err == nil {
				wantError(t, "Verify", b.Verify(), tt.check)
			}
		})
	}
}

func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: error %v, want %q", what, err, want)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	exe := filepath.Join(root, "tree", "bin", "sampand")
	dist := filepath.Join(root, "tree", "dist", "guest-amd64")
	beside := filepath.Join(root, "tree", "bin", "guest-amd64")
	share := filepath.Join(root, "tree", "share", "sampan", "guest-amd64")
	env := filepath.Join(root, "elsewhere")

	if _, err := find("", exe, "amd64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing there: error %v", err)
	}
	// Each that is added goes before those that were there.
	for _, dir := range []string{dist, beside, share} {
		makeBundle(t, dir)
		if got, err := find("", exe, "amd64"); err != nil || got != dir {
			t.Errorf("find = %q, %v; want %q", got, err, dir)
		}
	}
	if _, err := find("", exe, "arm64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("another architecture: error %v", err)
	}
	if _, err := find(env, exe, "amd64"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), Env) {
		t.Errorf("a wrong %s: error %v", Env, err)
	}
	makeBundle(t, env)
	if got, err := find(env, exe, "amd64"); err != nil || got != env {
		t.Errorf("find = %q, %v; want %q", got, err, env)
	}
}
