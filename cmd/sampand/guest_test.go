package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sampan/kernel"
)

// TestGuestFiles: a bundle that is no good is told, whatever is wrong with it, and
// the next boot looks again.
func TestGuestFiles(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(kernel.Env, dir)
	archive := bytes.Repeat([]byte("070701 and so on. "), 100_000)
	packed, err := kernel.PackInitrd(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{kernel.KernelFile: []byte("a kernel"), kernel.InitrdFile: packed}
	m := kernel.Manifest{Schema: kernel.Schema, Arch: runtime.GOARCH, Files: map[string]kernel.File{}}
	for name, content := range files {
		sum := sha256.Sum256(content)
		m.Files[name] = kernel.File{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	}
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	write(kernel.ManifestFile, text)
	g := &guest{log: slog.New(slog.DiscardHandler)}
	boot := func() error {
		f, err := g.files()
		if err != nil {
			return err
		}
		defer f.Release()
		if err := f.Ready(); err != nil {
			return err
		}
		if got, err := os.ReadFile(f.Initrd); err != nil || !bytes.Equal(got, archive) {
			t.Errorf("the initramfs has %d bytes, %v; want %d", len(got), err, len(archive))
		}
		if got, err := os.ReadFile(f.Kernel); err != nil || string(got) != "a kernel" {
			t.Errorf("the kernel is %q, %v", got, err)
		}
		return nil
	}
	swapped := bytes.Clone(packed)
	swapped[len(swapped)/2] ^= 1
	for _, c := range []struct {
		name, file string
		content    []byte
	}{
		{"another kernel", kernel.KernelFile, []byte("b kernel")},
		{"no initramfs", kernel.InitrdFile, nil},
		{"half an initramfs", kernel.InitrdFile, packed[:len(packed)/2]},
		{"another byte", kernel.InitrdFile, swapped},
		{"something else", kernel.InitrdFile, archive},
	} {
		write(c.file, c.content)
		for name, content := range files {
			if name != c.file {
				write(name, content)
			}
		}
		for range 2 {
			if err := boot(); err == nil || !strings.Contains(err.Error(), c.file) || !strings.Contains(err.Error(), "make guest") {
				t.Errorf("%s: error %v", c.name, err)
			}
		}
		write(c.file, files[c.file])
		for range 2 {
			if err := boot(); err != nil {
				t.Errorf("%s, mended: %v", c.name, err)
			}
		}
		g = &guest{log: g.log} // as a new daemon: what is held on to is not looked at again
	}
}
