package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// Exec prepares one more process in the container, which waits for
// Process.Start. Cancelling ctx makes Exec give up, and has no effect once it
// has returned.
func (c *Container) Exec(ctx context.Context, spec *specs.Process, stdio Stdio) (*Process, error) {
	first, err := c.first.descriptor()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	defer first.Close()
	files, err := readUserFiles(c.rootfs)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	plan := &stage2.Plan{
		// All but the pid and cgroup namespaces; one that the container shares
		// with the agent is joined to no effect.
		Join:     []stage2.Namespace{{FD: stage2.FirstFD, Flags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}},
		PidFD:    stage2.FirstFD,
		CgroupFD: stage2.FirstFD + 1,
	}
	if plan.Process, err = c.r.process(spec, c.spec.Linux.Seccomp, files, stdio); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	dir, err := c.cgroup.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	s, err := c.r.launch(plan, stdio, []*os.File{first, dir}, &syscall.SysProcAttr{})
	if err != nil {
		return nil, err
	}
	stop := s.during(ctx)
	defer stop()
	p := &Process{r: c.r, stage: s, ended: make(chan struct{})}
	if err := p.ready(); err != nil {
		s.kill()
		return nil, errors.Join(ctx.Err(), err)
	}
	return p, nil
}

// descriptor is a copy of the process's pidfd.
func (p *Process) descriptor() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return nil, ErrNotRunning
	}
	select {
	case <-p.child.done:
		return nil, ErrNotRunning
	default:
	}
	conn, err := p.child.pidfd.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := conn.Control(func(n uintptr) { fd, dupErr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
