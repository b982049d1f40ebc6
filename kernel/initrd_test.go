package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
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
	b := &Bundle{PackedInitrd: filepath.Join(t.TempDir(), InitrdFile)}
	if err := os.WriteFile(b.PackedInitrd, packed, 0o644); err != nil {
		t.Fatal(err)
	}
	path, ready, release, err := b.UnpackInitrd()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != int64(len(archive)) {
		t.Errorf("at once: %v, %v; want %d bytes", info, err, len(archive))
	}
	if err := ready(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(archive))
	}
	kept, err := os.Open(path) // as a hypervisor keeps it
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	release()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(kept.Fd()), &st); err != nil || runtime.GOOS == "linux" && (st.Blocks != 0 || st.Size != int64(len(archive))) {
		t.Errorf("after release: %d blocks and %d bytes are left, %v", st.Blocks, st.Size, err)
	}
	if _, err := os.Stat(path); err == nil && runtime.GOOS == "linux" {
		t.Errorf("%s is left", path)
	}
	if got, err := b.ReadInitrd(); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(archive))
	}
	for _, size := range []int{len(packed) / 2, 0} {
		if err := os.Truncate(b.PackedInitrd, int64(size)); err != nil {
			t.Fatal(err)
		}
		_, ready, release, err := b.UnpackInitrd()
		if err == nil {
			err = ready()
			release()
		}
		if err == nil || !strings.Contains(err.Error(), InitrdFile) || !strings.Contains(err.Error(), "make guest") {
			t.Errorf("%d of %d bytes: error %v", size, len(packed), err)
		}
	}
}
