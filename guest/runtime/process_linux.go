package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// Process is a process of a container.
type Process struct {
	// Console is the terminal's master, when the process has a terminal. The
	// caller closes it.
	Console *os.File

	r      *Runtime
	cgroup *cgroup // of a container's first process; nil for an exec

	mu      sync.Mutex
	stage   *stage // nil once started or killed
	child   *child // nil for a fork before Start
	started bool
	// ended is closed when the child has ended or never came; nil unless that
	// is a fork of stage 2: an exec's, or the first process of a container in
	// another's pid namespace.
	ended chan struct{}
}

// startTimeout bounds the way from "start" to execve.
const startTimeout = 10 * time.Second

// ready waits for stage 2 to have prepared everything.
func (p *Process) ready() error {
	_, fd, err := p.stage.expect("ready")
	if fd < 0 {
		return err
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	p.Console = os.NewFile(uintptr(fd), "console")
	return nil
}

// Pid in the agent's pid namespace. A process that is forked by Start has none
// (0) before.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return 0
	}
	return p.child.pid
}

// Start lets the process go. It returns when the process has been executed; or
// with an error that wraps ErrNotFound or ErrNotExecutable where that is the
// reason, and the process is gone.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stage
	if s == nil {
		return errors.New("process was started before, or killed")
	}
	p.stage = nil
	defer s.conn.Close()
	// A frozen cgroup would hold the fork, and with it this call, for ever.
	if err := s.conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	switch {
	case p.cgroup == nil:
		return p.startFork(s)
	case p.ended != nil:
		return p.startFirstFork(s)
	}
	return p.startFirst(s)
}

func (p *Process) startFirst(s *stage) error {
	err := p.cgroup.limit()
	if err == nil {
		err = p.letGo(s)
	}
	if err == nil {
		_, _, err = s.receive()
	}
	if err == io.EOF { // the socket closed, as execve closes it
		p.started = true
		return nil
	}
	s.kill()
	return err
}

// letGo tells stage 2 to start, and which limit to set first.
func (p *Process) letGo(s *stage) error {
	f, err := p.cgroup.pidsMax()
	if err != nil {
		return err
	}
	if f != nil {
		defer f.Close()
	}
	return s.tell(stage2.Message{Kind: "start", Pids: p.cgroup.pids}, f)
}

// startFirstFork is startFirst where stage 2 forks. The limit of processes comes
// when that is over: stage 2, which has several threads, lives on until then.
func (p *Process) startFirstFork(s *stage) error {
	if err := p.cgroup.limit(); err != nil {
		s.kill()
		close(p.ended)
		return err
	}
	if err := p.startFork(s); err != nil || p.cgroup.pids == "" {
		return err
	}
	return p.cgroup.write(setting{pidsFile, p.cgroup.pids})
}

// startFork lets stage 2 fork. The fork is a child of this process: it's listed
// before it can be taken for an orphan.
func (p *Process) startFork(s *stage) error {
	defer s.kill()
	pidfd := -1
	pid, err := p.r.opts.Children.Start(func() (int, error) {
		if err := s.send("start"); err != nil {
			return 0, err
		}
		m, fd, err := s.expect("started")
		if err != nil {
			if m.Pid != 0 {
				reapFork(m.Pid)
			}
			return 0, err
		}
		pidfd = fd
		return m.Pid, p.checkFork(m)
	})
	if err == nil {
		p.child, err = watch(p.r.opts.Children, pid, pidfd)
	}
	if err != nil {
		close(p.ended)
		return err
	}
	p.started = true
	go func() {
		<-p.child.done
		close(p.ended)
	}()
	return nil
}

// checkFork makes sure that a pid is that of a child that nobody else waits
// for. In theory a process of the container can have reached for the fork's
// socket before it was closed, and lied.
func (p *Process) checkFork(m stage2.Message) error {
	var info unix.Siginfo
	err := ignoreEINTR(func() error {
		return unix.Waitid(unix.P_PID, m.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	})
	if err == nil && p.r.opts.Children.Owned(m.Pid) {
		err = errors.New("it is another process's")
	}
	if err != nil {
		return fmt.Errorf("stage 2 reports process %d: %w", m.Pid, err)
	}
	return nil
}

// reapFork reaps a fork that has failed and is ending.
func reapFork(pid int) {
	_ = ignoreEINTR(func() error {
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	})
}

// Wait returns when the process has ended, or with ctx. It may be called often.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.Done():
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return ExitStatus{}, fmt.Errorf("process was never executed: %w", ErrNotRunning)
	}
	return p.child.status, p.child.err
}

// Done is closed when the process has ended, or can't ever run.
func (p *Process) Done() <-chan struct{} {
	if p.ended != nil {
		return p.ended
	}
	return p.child.done
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig int) error {
	p.mu.Lock()
	c, started := p.child, p.started
	p.mu.Unlock()
	if !started {
		return fmt.Errorf("process is not started: %w", ErrNotRunning)
	}
	return c.signal(sig)
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(rows, columns uint16) error {
	if p.Console == nil {
		return errors.New("process has no terminal")
	}
	conn, err := p.Console.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	if err := conn.Control(func(fd uintptr) {
		setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}); err != nil {
		return err
	}
	return setErr
}

// Kill ends a process that was created but not started. Idempotent; it has no
// effect on a process that was.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage == nil {
		return nil
	}
	p.stage.kill()
	p.stage = nil
	if p.ended != nil {
		close(p.ended)
	}
	return nil
}
