package kernel

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// A held bundle stays whole when its directory is replaced, and whatever the
// garbage collector does.
func TestHold(t *testing.T) {
	dir := t.TempDir()
	manifest := `{"schema":2,"files":{"vmlinuz":{"size":6,"sha256":""},"initrd.zst":{"size":6,"sha256":""}}}`
	for name, text := range map[string]string{KernelFile: "kernel", InitrdFile: "initrd", ManifestFile: manifest} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Hold(); err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC()
	}
	for path, want := range map[string]string{b.Kernel: "kernel", b.PackedInitrd: "initrd"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}
