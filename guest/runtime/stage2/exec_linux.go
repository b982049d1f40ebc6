package stage2

import (
	"encoding/binary"
	"errors"
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
	pr.leaveStage2()
	if t != nil {
		pr.controllingTerminal()
	}
	if err := pr.finish(p); err != nil {
		return err
	}
	return pr.forkInto(plan.PidFD, plan.CgroupFD, c)
}

// leaveStage2 adds what makes a fork of stage 2 a process of its own.
func (pr *program) leaveStage2() {
	pr.add("close descriptors", unix.SYS_CLOSE_RANGE, reportFD+1, uintptr(^uint32(0)), 0)
	pr.add("become session leader", unix.SYS_SETSID)
}

// forkInto forks, and tells the agent.
func (pr *program) forkInto(container, cgroup int, c control) error {
	pid, pidfd, err := pr.fork(container, cgroup)
	if err != nil {
		return err
	}
	return c.send(Message{Kind: "started", Pid: pid}, pidfd)
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// fork carries the program out in a new process in the container's pid
// namespace and a cgroup (0: this process's), a child of this process's parent.
// It returns when that has executed.
func (pr *program) fork(container, cgroup int) (pid, pidfd int, err error) {
	fd := new(int32)
	args := &cloneArgs{
		flags: unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd: uint64(addr(pr, fd)),
	}
	if cgroup != 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	pid, err = pr.clone(container, args)
	return pid, int(*fd), err
}

// clone carries the program out in a fork in the container's pid namespace. It
// returns when that has executed, or ended. The steps leave reportFD alone.
func (pr *program) clone(container int, args *cloneArgs) (pid int, err error) {
	if err := unix.Setns(container, unix.CLONE_NEWPID); err != nil {
		return 0, ended(err, fmt.Errorf("join pid namespace: %w", err))
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(pipe[0])
	if err := unix.Dup3(pipe[1], reportFD, unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	unix.Close(pipe[1])
	pid, errno := forkSteps(args, pr.steps, new([2]uint32))
	runtime.KeepAlive(pr)
	// The number is kept for the next fork.
	if err := unix.Dup3(pipe[0], reportFD, unix.O_CLOEXEC); err != nil {
		return pid, err
	}
	if errno != 0 {
		return 0, ended(errno, fmt.Errorf("fork into the container: %w", errno))
	}
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
		return 0, &zombieError{pid, pr.failed(int(step), errno)}
	}
	return pid, err
}

// ended gives err a class when its cause is what the kernel says of a process, a
// pid namespace or a cgroup that is gone or going: ESRCH, ENOMEM, ENODEV.
func ended(cause, err error) error {
	if cause == unix.ESRCH || cause == unix.ENOMEM || cause == unix.ENODEV {
		return &execError{ClassEnded, err}
	}
	return err
}

// carryOut carries the program out, to its end, in a fork in the container's
// pid namespace.
func (pr *program) carryOut(container int) error {
	pid, err := pr.clone(container, &cloneArgs{flags: unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)})
	var z *zombieError
	if errors.As(err, &z) {
		pid, err = z.pid, z.err // not for the agent, it's this process's child
	}
	if pid == 0 {
		return err
	}
	var status unix.WaitStatus
	waitErr := error(unix.EINTR)
	for waitErr == unix.EINTR {
		_, waitErr = unix.Wait4(pid, &status, 0, nil)
	}
	if err == nil && waitErr != nil {
		err = fmt.Errorf("wait for a fork in the container: %w", waitErr)
	}
	if err == nil && status != 0 { // somebody in there has killed it
		err = fmt.Errorf("a fork in the container ended with status %#x", status)
	}
	return err
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
