package stage2

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zombieError is an error of a fork that has ended; the agent, its parent, has
// to reap it.
type zombieError struct {
	pid int
	err error
}

func (e *zombieError) Error() string { return e.err.Error() }
func (e *zombieError) Unwrap() error { return e.err }

// enter runs one more process in a running container. This process joins every
// namespace but the pid and the cgroup namespace, and never shows up inside.
func enter(plan *Plan, c control) error {
	p := &plan.Process
	if err := join(plan.Join); err != nil {
		return err
	}
	t, err := openTerminal(p)
	if err != nil {
		return err
	}
	pr, err := prepare(p, t)
	if err != nil {
		return err
	}
	if err := c.send(Message{Kind: "ready"}, t.masterFD()); err != nil {
		return err
	}
	t.closeMaster()
	if err := c.await("start"); err != nil {
		return err
	}
	if err := pr.lookUp(p); err != nil {
		return err
	}
	// After clone, not here: with nsdelegate the kernel lets nobody leave the
	// cgroup namespace that it's in.
	pr.add("join cgroup namespace", unix.SYS_SETNS, uintptr(plan.PidFD), unix.CLONE_NEWCGROUP)
	pr.add("close descriptors", unix.SYS_CLOSE_RANGE, reportFD+1, uintptr(^uint32(0)), 0)
	pr.add("become session leader", unix.SYS_SETSID)
	if t != nil {
		pr.controllingTerminal()
	}
	if err := pr.finish(p); err != nil {
		return err
	}
	pid, pidfd, err := pr.fork(plan.PidFD, plan.CgroupFD)
	if err != nil {
		return err
	}
	return c.send(Message{Kind: "started", Pid: pid}, pidfd)
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// fork carries the program out in a new process in the container's cgroup and
// pid namespace, a child of this process's parent. It returns when that has
// executed.
func (pr *program) fork(container, cgroup int) (pid, pidfd int, err error) {
	if err := unix.Setns(container, unix.CLONE_NEWPID); err != nil {
		return 0, -1, fmt.Errorf("join pid namespace: %w", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, err
	}
	if err := unix.Dup3(pipe[1], reportFD, unix.O_CLOEXEC); err != nil {
		return 0, -1, err
	}
	unix.Close(pipe[1])
	fd := new(int32)
	args := &cloneArgs{
		flags:  unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_INTO_CGROUP | unix.CLONE_CLEAR_SIGHAND,
		pidfd:  uint64(addr(pr, fd)),
		cgroup: uint64(cgroup),
	}
	pid, errno := forkSteps(args, pr.steps, new([2]uint32))
	runtime.KeepAlive(pr)
	if errno != 0 {
		return 0, -1, fmt.Errorf("fork into the container: %w", errno)
	}
	unix.Close(reportFD)
	var report [8]byte
	var n int
	for {
		if n, err = unix.Read(pipe[0], report[:]); err != unix.EINTR {
			break
		}
	}
	if n == len(report) {
		step := binary.NativeEndian.Uint32(report[:])
		errno := syscall.Errno(binary.NativeEndian.Uint32(report[4:]))
		return 0, -1, &zombieError{pid, pr.failed(int(step), errno)}
	}
	return pid, int(*fd), err
}

// forkSteps forks, and runs the steps in the child, where it doesn't return.
// Signals are blocked meanwhile: nobody could handle one in the child.
//
//go:norace
//go:nosplit
func forkSteps(args *cloneArgs, steps []step, report *[2]uint32) (int, syscall.Errno) {
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if pid == 0 && errno == 0 {
		i, failed := runSteps(steps)
		report[0], report[1] = uint32(i), uint32(failed)
		syscall.RawSyscall6(unix.SYS_WRITE, reportFD, uintptr(unsafe.Pointer(report)), unsafe.Sizeof(*report), 0, 0, 0)
		for {
			syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0, 0)
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return int(pid), errno
}
