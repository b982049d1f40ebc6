package runtime

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigchld is what the kernel fills of siginfo_t for waitid, on 64-bit systems
// (include/uapi/asm-generic/siginfo.h).
type sigchld struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
}

func siginfoPid(info *unix.Siginfo) int {
	return int((*sigchld)(unsafe.Pointer(info)).pid)
}

// siginfoStatus tells how the process ended that info is about.
func siginfoStatus(info *unix.Siginfo) ExitStatus {
	const exited = 1 // CLD_EXITED
	s := (*sigchld)(unsafe.Pointer(info))
	if s.code == exited {
		return ExitStatus{Code: int(s.status)}
	}
	return ExitStatus{Code: 128 + int(s.status), Signal: int(s.status)}
}
