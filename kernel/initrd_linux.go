package kernel

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// UnpackInitrd makes a file in memory of the initramfs as the kernel is to get
// it. The file has its size at once, and its content when ready returns, which may
// be called more than once. Its name is good for this process and its children, until
// release.
//
// Hazard: QEMU maps the file and keeps the mapping; the guest's firmware copies
// what it needs as late as it runs. So release gives the memory back itself, and
// must not be called before the kernel has begun.
func (b *Bundle) UnpackInitrd() (path string, ready func() error, release func(), err error) {
	size, err := b.unpackedSize()
	if err != nil {
		return "", nil, nil, err
	}
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return "", nil, nil, fmt.Errorf("guest bundle: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "initrd")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return "", nil, nil, fmt.Errorf("guest bundle: %w", err)
	}
	done := make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		failed = b.unpack(f)
		if n, err := f.Seek(0, io.SeekCurrent); failed == nil && (err != nil || n != size) {
			failed = fmt.Errorf("guest bundle: unpack %s: it has %d bytes, and says %d (%v): run `make guest`", InitrdFile, n, size, err)
		}
	}()
	ready = func() error {
		<-done // bounded: maxInitrd
		return failed
	}
	release = func() {
		<-done
		// Punched, not truncated: whoever still reads gets zeros, not SIGBUS.
		page := int64(os.Getpagesize())                                                                        // whole ones are freed
		_ = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, (size+page-1)/page*page) // no memfd refuses that
		f.Close()
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), ready, release, nil
}
