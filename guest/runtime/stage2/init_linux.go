package stage2

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entry is where the kernel starts a binary linked with -E and this function's
// name. It is the small init where the arguments say so, and Go's own entry
// where not.
func entry()

// thread stands in for the thread-local storage that Go's runtime has not made.
var thread [16]uintptr

// smallInit returns at once unless argv[0] is InitName; then it starts argv[1]
// with the arguments argv[2:] in a process group of its own (the terminal's
// foreground), forwards signals to it, reaps whatever else ends, and ends as it
// did. It runs as the container's user, with all its limits.
//
// Go's runtime is not there: its threads would count against the container's
// limit of processes, where Docker's init counts as one. So this must neither
// allocate, nor grow the stack, nor panic. The stack is as execve makes it: argc,
// argv, NULL, environment, NULL.
//
//go:norace
//go:nosplit
func smallInit(stack unsafe.Pointer) {
	argc := *(*uintptr)(stack)
	argv := unsafe.Add(stack, ptrSize)
	if argc < 3 || !isInit(*(*unsafe.Pointer)(argv)) {
		return
	}
	all := ^uint64(0)
	call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), 0, 8)
	pid, errno := call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0)
	switch {
	case errno != 0:
		complain("fork", nil, errno)
		leaveInit(1)
	case pid == 0:
		become(argv, unsafe.Add(argv, (argc+1)*ptrSize))
	}
	for {
		signal, errno := call(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&all)), 0, 0, 8)
		switch {
		case errno == unix.EINTR: // stopped and continued
		case errno != 0: // a filter of system calls refuses it
			complain("wait for signals", nil, errno)
			leaveInit(1)
		case signal == uintptr(unix.SIGCHLD):
			reap(pid)
		default:
			call(unix.SYS_KILL, pid, signal, 0, 0)
		}
	}
}

const ptrSize = unsafe.Sizeof(uintptr(0))

//go:norace
//go:nosplit
func isInit(name unsafe.Pointer) bool {
	want := unsafe.Pointer(unsafe.StringData(InitName))
	for i := range len(InitName) {
		if *(*byte)(unsafe.Add(name, i)) != *(*byte)(unsafe.Add(want, i)) {
			return false
		}
	}
	return *(*byte)(unsafe.Add(name, len(InitName))) == 0
}

// become is the command's process from its fork on.
//
//go:norace
//go:nosplit
func become(argv, env unsafe.Pointer) {
	call(unix.SYS_SETPGID, 0, 0, 0, 0)
	pid, _ := call(unix.SYS_GETPID, 0, 0, 0, 0)
	group := int32(pid)
	call(unix.SYS_IOCTL, 0, unix.TIOCSPGRP, uintptr(unsafe.Pointer(&group)), 0) // no matter where there is no terminal
	none := uint64(0)
	call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8)
	path := *(*unsafe.Pointer)(unsafe.Add(argv, ptrSize))
	_, errno := call(unix.SYS_EXECVE, uintptr(path), uintptr(unsafe.Add(argv, 2*ptrSize)), uintptr(env), 0)
	complain("exec ", path, errno)
	if errno == unix.ENOENT || errno == unix.ENOTDIR {
		leaveInit(127)
	}
	leaveInit(126)
}

// reap reaps everything that has ended, and ends when pid has.
//
//go:norace
//go:nosplit
func reap(pid uintptr) {
	code := -1
	for {
		status := uint32(0)
		got, errno := call(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)), unix.WNOHANG, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0 || got == 0:
			if code >= 0 {
				leaveInit(uintptr(code))
			}
			return
		case got != pid:
		case status&0x7f == 0:
			code = int(status >> 8 & 0xff)
		default:
			code = 128 + int(status&0x7f)
		}
	}
}

// complain says on standard error what failed: what and, unless it is nil, a
// string that ends with a zero.
//
//go:norace
//go:nosplit
func complain(what string, object unsafe.Pointer, errno syscall.Errno) {
	say(InitName)
	say(": ")
	say(what)
	if object != nil {
		n := 0
		for *(*byte)(unsafe.Add(object, n)) != 0 {
			n++
		}
		call(unix.SYS_WRITE, 2, uintptr(object), uintptr(n), 0)
	}
	say(": ")
	switch errno {
	case unix.EPERM:
		say("operation not permitted")
	case unix.ENOENT:
		say("no such file or directory")
	case unix.ENOTDIR:
		say("not a directory")
	case unix.EACCES:
		say("permission denied")
	case unix.ENOEXEC:
		say("exec format error")
	case unix.EAGAIN:
		say("resource temporarily unavailable")
	case unix.ENOMEM:
		say("cannot allocate memory")
	case unix.E2BIG:
		say("argument list too long")
	default:
		say("error ")
		sayNumber(uintptr(errno))
	}
	say("\n")
}

//go:norace
//go:nosplit
func sayNumber(n uintptr) {
	var digits [20]byte
	at := uintptr(len(digits))
	for {
		at--
		*(*byte)(unsafe.Add(unsafe.Pointer(&digits), at)) = '0' + byte(n%10)
		if n /= 10; n == 0 {
			break
		}
	}
	call(unix.SYS_WRITE, 2, uintptr(unsafe.Add(unsafe.Pointer(&digits), at)), uintptr(len(digits))-at, 0)
}

//go:norace
//go:nosplit
func say(text string) {
	call(unix.SYS_WRITE, 2, uintptr(unsafe.Pointer(unsafe.StringData(text))), uintptr(len(text)), 0)
}

//go:norace
//go:nosplit
func leaveInit(code uintptr) {
	for {
		call(unix.SYS_EXIT_GROUP, code, 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func call(nr, a, b, c, d uintptr) (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(nr, a, b, c, d, 0, 0)
	return r, errno
}
