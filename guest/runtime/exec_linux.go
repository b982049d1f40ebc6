package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	var extra descriptors
	defer extra.close()
	pidfd := extra.add(first)
	files, err := readUserFiles(c.rootfs)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	dir, err := c.cgroup.openForExec(c.first.Pid())
	if err != nil {
		return nil, err
	}
	plan := &stage2.Plan{
		// All but the pid and cgroup namespaces; one that the container shares
		// with the agent is joined to no effect.
		Join:     []stage2.Namespace{{FD: pidfd, Flags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}},
		PidFD:    pidfd,
		CgroupFD: extra.add(dir),
	}
	if plan.Process, err = c.r.process(spec, c.seccomp, files, stdio); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	sh, reserved, err := c.r.shellFor(0)
	if err == nil {
		sh, err = c.r.given(sh, reserved, 0, func(s *stage) error { return s.give(plan, stdio, extra.files) })
	}
	if err != nil {
		return nil, err
	}
	stop := sh.stage.during(ctx)
	defer stop()
	p := &Process{r: c.r, stage: sh.stage, ended: make(chan struct{})}
	if err := p.ready(); err != nil {
		sh.stage.kill()
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
		return nil, ErrNotRunning // it has ended just now
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
