package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is packed comes back, in a file that is gone after release; what is
// damaged is told.
func TestUnpackInitrd(t *testing.T) {
	archive := bytes.Repeat([]byte("070701 and so on. "), 100_000)
	packed, err := PackInitrd(archive)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bundle{Initrd: filepath.Join(t.TempDir(), InitrdFile)}
	if err := os.WriteFile(b.Initrd, packed, 0o644); err != nil {
		t.Fatal(err)
	}
	path, release, err := b.UnpackInitrd()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(archive))
	}
	release()
	if _, err := os.Stat(path); err == nil {
		t.Errorf("%s is left", path)
	}
	if got, err := b.ReadInitrd(); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(archive))
	}
	if err := os.Truncate(b.Initrd, int64(len(packed)/2)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.UnpackInitrd(); err == nil || !strings.Contains(err.Error(), InitrdFile) {
		t.Errorf("half a file: error %v", err)
	}
}
