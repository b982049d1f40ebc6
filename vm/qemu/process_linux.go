package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is QEMU running. It is killed when this process ends, however that
// happens.
type process struct {
	os     *os.Process
	output *tail // what it printed; QEMU says there why it gave up
	done   chan struct{}
	err    error // why it ended; read after done
}

// firstFD is the number of the first of startProcess's files in the child.
const firstFD = 3

// startProcess runs a program with files as descriptors 3, 4, …; the caller
// closes its copies.
func startProcess(path string, args []string, files []*os.File) (*process, error) {
	p := &process{output: &tail{}, done: make(chan struct{})}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // a terminal's Ctrl-C is for us alone
	}
	started := make(chan error)
	go func() {
		// Pdeathsig fires when the starting *thread* ends, so this goroutine
		// keeps it. Unlocked at the end: a thread must not end with its
		// goroutine, it may be the main one.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.os = cmd.Process
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return p, nil
}

// kill ends the process; done closes soon.
func (p *process) kill() {
	_ = p.os.Kill() // fails only when it has ended
}

// signaled is the signal that ended the process, or 0. Call it after done.
func (p *process) signaled() syscall.Signal {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return ws.Signal()
		}
	}
	return 0
}
