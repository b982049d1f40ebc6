package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/runtime"
)

// guestProcess is a process of the guest itself, outside of any container: the
// machine's shell, as root.
type guestProcess struct {
	cmd     *exec.Cmd
	kids    *runtime.Children
	console *os.File // master of the terminal, or nil
	done    chan struct{}
	status  runtime.ExitStatus
}

// launchInGuest is a launcher. Of the spec it takes args, env, cwd and
// terminal; the rest is the guest's.
func (s *Service) launchInGuest(_ context.Context, spec *specs.Process, stdio *stdio) (handle, func() error, func() error, error) {
	if len(spec.Args) == 0 {
		return nil, nil, nil, errors.New("process without arguments")
	}
	p := &guestProcess{kids: s.cfg.Children, done: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: spec.Args[0], Args: spec.Args, Env: spec.Env, Dir: spec.Cwd,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if spec.Terminal {
		master, slave, err := openPTY()
		if err != nil {
			return nil, nil, nil, err
		}
		p.console = master
		stdio.child.Stdin, stdio.child.Stdout, stdio.child.Stderr = slave, slave, slave
		p.cmd.SysProcAttr.Setctty = true
		if err := errors.Join(stdio.terminal(master), p.Resize(stdio.child.Rows, stdio.child.Columns)); err != nil {
			return nil, nil, nil, errors.Join(err, p.abandon())
		}
	}
	// An *os.File in an interface is never nil: only what is there.
	if f := stdio.child.Stdin; f != nil {
		p.cmd.Stdin = f
	}
	if f := stdio.child.Stdout; f != nil {
		p.cmd.Stdout = f
	}
	if f := stdio.child.Stderr; f != nil {
		p.cmd.Stderr = f
	}
	return p, p.start, p.abandon, nil
}

// abandon releases what a process that was never started holds.
func (p *guestProcess) abandon() error {
	if p.console == nil {
		return nil
	}
	return p.console.Close()
}

func (p *guestProcess) start() error {
	_, err := p.kids.Start(func() (int, error) {
		if err := p.cmd.Start(); err != nil {
			return 0, err
		}
		return p.cmd.Process.Pid, nil
	})
	if err != nil {
		p.abandon()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("exec %s: %w", p.cmd.Path, runtime.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("exec %s: %w", p.cmd.Path, runtime.ErrNotExecutable)
	case err != nil:
		return err
	}
	go func() {
		p.cmd.Wait() // its error is in the state
		p.kids.Done(p.cmd.Process.Pid)
		ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
		p.status = runtime.ExitStatus{Code: ws.ExitStatus()}
		if ws.Signaled() {
			p.status = runtime.ExitStatus{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
		}
		if p.console != nil {
			p.console.Close()
		}
		close(p.done)
	}()
	return nil
}

func (p *guestProcess) Pid() int { return p.cmd.Process.Pid }

func (p *guestProcess) Wait(ctx context.Context) (runtime.ExitStatus, error) {
	select {
	case <-p.done:
		return p.status, nil
	case <-ctx.Done():
		return runtime.ExitStatus{}, ctx.Err()
	}
}

func (p *guestProcess) Signal(sig int) error { return p.cmd.Process.Signal(syscall.Signal(sig)) }

func (p *guestProcess) Resize(rows, columns uint16) error {
	if p.console == nil {
		return errors.New("no terminal")
	}
	if rows == 0 && columns == 0 {
		return nil
	}
	return unix.IoctlSetWinsize(int(p.console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
}

// openPTY makes a pseudo terminal of the guest's own devpts.
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	return master, slave, nil
}
