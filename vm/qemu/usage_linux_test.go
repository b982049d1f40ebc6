package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A process's own folder can be read, and without io there are other figures.
func TestUsageOf(t *testing.T) {
	u, err := usageOf("/proc/self")
	if err != nil || u.Memory < 1<<20 || u.Threads < 1 {
		t.Errorf("%+v, %v", u, err)
	}
	dir := t.TempDir()
	for _, name := range []string{"stat", "status"} {
		text, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := usageOf(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := usageOf(dir); err != nil || u.Storage != nil || u.Memory == 0 {
		t.Errorf("without io: %+v, %v", u, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "io"), []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := usageOf(dir); err == nil {
		t.Error("a broken io: no error")
	}
}
