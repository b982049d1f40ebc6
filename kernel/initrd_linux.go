package kernel

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// UnpackInitrd makes a file in memory of the initramfs as the kernel is to get
// it. Its name is good for this process and its children, until release.
func (b *Bundle) UnpackInitrd() (path string, release func(), err error) {
	fd, err := unix.MemfdCreate(InitrdFile, unix.MFD_CLOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("guest bundle: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), InitrdFile)
	if err := b.unpack(f); err != nil {
		f.Close()
		return "", nil, err
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), func() { f.Close() }, nil
}
