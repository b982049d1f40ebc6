package qemu

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sampan/vm"
)

// lockLimit is how long a QEMU that was killed may take to be gone: it has a
// guest's memory to give back. Its locks on the disks go last.
const lockLimit = 10 * time.Second

// awaitDisks waits until no other QEMU has a lock on one of the disks. The last
// daemon may have been killed a moment ago, and its QEMU with it.
func awaitDisks(ctx context.Context, disks []vm.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	for _, d := range disks {
		if d.ReadOnly {
			continue
		}
		if err := awaitUnlocked(ctx, d.Path); err != nil {
			return err
		}
	}
	return nil
}

func awaitUnlocked(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		// QEMU's are locks of the open file on single bytes (block/file-posix.c).
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
			return fmt.Errorf("disk %s: ask for its locks: %w", path, err)
		}
		if lock.Type == unix.F_UNLCK {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond): // nobody tells of the end of a lock
		case <-ctx.Done():
			return fmt.Errorf("disk %s is in use by another process, likely another QEMU: end that first", path)
		}
	}
}
