package runtime

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// shell is a stage 2 that waits for its plan, and the cgroup that it's in: nil
// for an exec's, which stays in the agent's.
type shell struct {
	stage  *stage
	cgroup *cgroup
	forks  bool // its plan has it fork the process, not become it
}

// discard ends a shell that isn't used.
func (s *shell) discard() error {
	s.stage.kill()
	if s.cgroup == nil {
		return nil
	}
	ctx, cancel := killContext()
	defer cancel()
	return s.cgroup.destroy(ctx)
}

// commonFlags are the namespaces that a container has unless it is told to
// share some.
const commonFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// newShell starts a stage 2, which lets go of mounts first: in new namespaces
// and a new cgroup for Create, or for Exec (flags 0) beside the agent.
func (r *Runtime) newShell(flags uintptr, mounts ...string) (*shell, error) {
	if flags == 0 {
		s, err := r.launch(&syscall.SysProcAttr{})
		return &shell{stage: s}, err
	}
	cg, err := r.newCgroup()
	if err != nil {
		return nil, err
	}
	dir, err := cg.open()
	if err != nil {
		return nil, errors.Join(err, cg.remove())
	}
	defer dir.Close()
	s, err := r.launch(&syscall.SysProcAttr{Cloneflags: flags, UseCgroupFD: true, CgroupFD: int(dir.Fd())}, mounts...)
	if err != nil {
		return nil, errors.Join(err, cg.remove())
	}
	return &shell{stage: s, cgroup: cg}, nil
}

// reserve is a place for one shell that was started before it is needed: that
// takes half of the time of a start.
type reserve struct {
	mu     sync.Mutex // held while a shell is being started: who wants one waits for it
	shell  *shell
	closed bool
}

// fill starts a shell if there is none.
func (r *reserve) fill(start func() (*shell, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.shell != nil && !r.shell.stage.ended() {
		return nil
	}
	err := r.dropLocked()
	if err != nil {
		return err
	}
	r.shell, err = start()
	return err
}

// take returns the shell, or nil when there is none.
func (r *reserve) take() *shell {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shell == nil || r.shell.stage.ended() {
		return nil
	}
	s := r.shell
	r.shell = nil
	return s
}

func (r *reserve) dropLocked() error {
	s := r.shell
	r.shell = nil
	if s == nil {
		return nil
	}
	return s.discard()
}

func (r *reserve) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.dropLocked()
}

// Reserve starts the processes that the next Create and the next Exec take
// over, unless they are there. It returns when they are on their way. Those two
// work without as well.
func (r *Runtime) Reserve() error {
	return errors.Join(
		r.ReserveCreate(),
		r.execs.fill(func() (*shell, error) { return r.newShell(0) }),
	)
}

// ReserveCreate is Reserve for the next Create alone: when there is no container
// yet, that is what comes first.
func (r *Runtime) ReserveCreate() error {
	return r.creates.fill(func() (*shell, error) { return r.newShell(commonFlags, r.opts.Mounts...) })
}

// Close ends what is in reserve, for good.
func (r *Runtime) Close() error { return errors.Join(r.creates.close(), r.execs.close()) }

// shellFor returns the shell in reserve, or a new one.
func (r *Runtime) shellFor(flags uintptr) (s *shell, reserved bool, err error) {
	switch flags {
	case 0:
		s = r.execs.take()
	case commonFlags:
		s = r.creates.take()
	}
	if s != nil {
		return s, true, nil
	}
	s, err = r.newShell(flags)
	return s, false, err
}

// given gives a shell its plan. One from the reserve that somebody has killed is
// replaced by a new one. After an error none is left.
func (r *Runtime) given(s *shell, reserved bool, flags uintptr, give func(*stage) error) (*shell, error) {
	err := give(s.stage)
	if err == nil {
		return s, nil
	}
	if derr := s.discard(); derr != nil || !reserved {
		return nil, errors.Join(err, derr)
	}
	if s, err = r.newShell(flags); err != nil {
		return nil, err
	}
	return r.given(s, false, flags, give)
}
