package stage2

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestChdirMagic: no descriptor of this process is a way to a working directory
// (CVE-2024-21626), whatever its number.
func TestChdirMagic(t *testing.T) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for fd := dir; fd < 256; { // the numbers that are free, to 255
		open = append(open, fd)
		if fd, err = unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if fd >= 256 {
			unix.Close(fd)
		}
	}
	for n := range 256 {
		for _, name := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/.", "/proc/thread-self/fd/%d/../tmp"} {
			if err := chdir(fmt.Sprintf(name, n)); !errors.Is(err, unix.ELOOP) {
				t.Errorf(name+": %v, want %v", n, err, unix.ELOOP)
			}
		}
	}
	if err := chdir("/proc/self/cwd"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("/proc/self/cwd: %v", err)
	}
}
