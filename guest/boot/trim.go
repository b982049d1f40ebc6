package boot

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fitrim is FITRIM, _IOWR('X', 121, struct fstrim_range) (uapi/linux/fs.h): it
// discards what is free in a part of a mounted file system.
const fitrim = 0xc0185879

// trimPiece is how much is trimmed at a time, in bytes: the power-off waits for
// no more.
const trimPiece = 1 << 30

// fstrimRange is struct fstrim_range. The kernel returns in length how much it
// has discarded.
type fstrimRange struct{ start, length, minimum uint64 }

// TrimData gives back to the host what the data disk has free but the host still
// keeps. Nothing is, but after a crash: what was deleted is discarded once that
// is in the journal, which the crash may have prevented, and the check of the
// disk deletes without discarding. It takes a while and may be cut short.
func (g *Guest) TrimData() error {
	if g.DataDisk != diskRepaired {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(DataDir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: DataDir, Err: err}
	}
	// The range counts what the file system keeps for itself as well, Blocks
	// doesn't: the last piece has no end.
	size := fs.Blocks * uint64(fs.Bsize)
	for at := uint64(0); at < size; at += trimPiece {
		r := fstrimRange{start: at, length: trimPiece}
		if at+trimPiece >= size {
			r.length = ^uint64(0)
		}
		if err := r.trim(DataDir); err != nil {
			return fmt.Errorf("give back what is free on the data disk: %w", err)
		}
	}
	return nil
}

// trim discards a range of the file system at dir; what can't be discarded is
// not.
func (r fstrimRange) trim(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
	if errno != 0 && !errors.Is(errno, unix.EOPNOTSUPP) {
		return os.NewSyscallError("FITRIM", errno)
	}
	return nil
}
