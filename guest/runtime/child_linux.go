package runtime

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// child is a process that this one waits for.
type child struct {
	pid    int
	pidfd  *os.File
	done   chan struct{} // closed when it has ended and been reaped
	status ExitStatus    // valid then
	err    error         // why the status is unknown; valid then
}

// watch takes over a child that is listed in kids, and reaps it when it ends.
func watch(kids *Children, pid, pidfd int) (*child, error) {
	// Non-blocking: so that the poller waits for its end, and not a thread.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, err
	}
	c := &child{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.status, c.err = c.wait()
		c.pidfd.Close() // not when memory is collected
		kids.Done(pid)
	}()
	return c, nil
}

func (c *child) wait() (ExitStatus, error) {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return ExitStatus{}, err
	}
	var info unix.Siginfo
	var waitErr error
	err = conn.Read(func(fd uintptr) bool {
		waitErr = ignoreEINTR(func() error {
			return unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
		})
		return waitErr == nil && siginfoPid(&info) != 0 || waitErr != nil && waitErr != unix.EAGAIN
	})
	if err == nil {
		err = waitErr
	}
	if err != nil {
		return ExitStatus{}, fmt.Errorf("wait for process %d: %w", c.pid, err)
	}
	return siginfoStatus(&info), nil
}

// signal sends a signal, and fails with ErrNotRunning when there's nobody left.
func (c *child) signal(sig int) error {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = conn.Control(func(fd uintptr) {
		sendErr = unix.PidfdSendSignal(int(fd), unix.Signal(sig), nil, 0)
	})
	if err != nil || sendErr == unix.ESRCH { // the descriptor goes with the process
		return fmt.Errorf("process %d: %w", c.pid, ErrNotRunning)
	}
	if sendErr != nil {
		return fmt.Errorf("send signal %d to process %d: %w", sig, c.pid, sendErr)
	}
	return nil
}
