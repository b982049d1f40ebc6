package boot

import (
	"errors"
	"fmt"
	"io/fs"
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

// untrimmed is there while the data disk is to be trimmed, also over a power-off
// that cuts that short.
const untrimmed = DataDir + "/untrimmed"

// fstrimRange is struct fstrim_range. The kernel returns in length how much it
// has discarded.
type fstrimRange struct{ start, length, minimum uint64 }

// TrimData gives back to the host what the data disk has free but the host still
// keeps. Nothing is, but after a crash: what was deleted is discarded once that
// is in the journal, which the crash may have prevented, and the check of the
// disk deletes without discarding. It takes a while; when it is cut short, the next boot
// does it once more.
func (g *Guest) TrimData() error {
	if _, err := os.Lstat(untrimmed); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(DataDir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: DataDir, Err: err}
	}
	// The range counts what the file system keeps for itself as well, Blocks
	// doesn't: the last piece has no end.
	size := st.Blocks * uint64(st.Bsize)
	for at := uint64(0); at < size; at += trimPiece {
		r := fstrimRange{start: at, length: trimPiece}
		if at+trimPiece >= size {
			r.length = ^uint64(0)
		}
		if err := r.trim(DataDir); err != nil {
			return fmt.Errorf("give back what is free on the data disk: %w", err)
		}
	}
	return os.Remove(untrimmed)
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
