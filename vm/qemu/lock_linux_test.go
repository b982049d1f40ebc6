package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/vm"
)

// A disk that another QEMU still holds is waited for, and named when that takes
// too long.
func TestAwaitDisks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	disks := []vm.Disk{{Path: path, Serial: "x"}}
	if err := awaitDisks(t.Context(), disks); err != nil {
		t.Fatal(err)
	}
	holder, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// As QEMU locks: shared, one byte.
	if err := unix.FcntlFlock(holder.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitDisks(ctx, disks); err == nil || !strings.Contains(err.Error(), path+" is in use") {
		t.Errorf("a disk in use: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { holder.Close() })
	if err := awaitDisks(t.Context(), disks); err != nil {
		t.Error(err)
	}
}
