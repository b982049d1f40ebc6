package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// daemonError is about reaching or starting the daemon. It is told as it is,
// whatever a library wrapped around it.
type daemonError struct{ text string }

func (e *daemonError) Error() string { return e.text }

// startDaemon starts sampand for home and returns when it serves. Two that
// start at once both work: the daemon that comes second says "ok" as well when
// it finds the other one alive.
//
// sampand writes "ok\n" to descriptor 3 when it serves, or why it can't. It
// leads a session of its own, so it outlives the terminal; nobody waits for
// it here.
func (a *app) startDaemon(ctx context.Context, home string) error {
	program, err := a.findDaemon()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return &daemonError{"start sampand: " + err.Error()}
	}
	logPath := filepath.Join(home, "sampand.log")
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return &daemonError{"start sampand: " + err.Error()}
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return &daemonError{"start sampand: " + err.Error()}
	}
	defer ready.Close()

	cmd := exec.Command(program, "--ready-fd", "3")
	cmd.Env = append(os.Environ(), "SAMPAN_HOME="+home)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := keepInherited(); err != nil {
		return &daemonError{"start sampand: " + err.Error()}
	}
	err = cmd.Start()
	_ = theirs.Close() // theirs is a copy; ours would hide the end of file
	if err != nil {
		return &daemonError{fmt.Sprintf("start %s: %v", program, err)}
	}
	defer func() { _ = cmd.Process.Release() }()

	deadline := time.Now().Add(a.startTimeout) // it boots no machine before it serves
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = ready.SetReadDeadline(deadline) // a pipe can
	return a.readiness(ready, logPath)
}

// keepInherited keeps from the daemon what this process has inherited open
// beyond its standard streams: the lock of a script that calls us, or the end of
// somebody's pipe, would be held until the daemon ends.
func keepInherited() error {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd) // without effect on the one that listed them
		}
	}
	return nil
}

// readiness reads what the daemon says about its start.
func (a *app) readiness(r io.Reader, logPath string) error {
	var said strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		said.Write(buf[:n])
		if said.String() == "ok\n" {
			return nil
		}
		if err == nil && said.Len() < 1<<16 {
			continue
		}
		text := strings.TrimSpace(said.String())
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			text = fmt.Sprintf("sampand does not serve after %s%s", a.startTimeout, logTail(logPath))
		case text == "":
			text = "sampand ended at its start" + logTail(logPath)
		}
		return &daemonError{"cannot start sampand: " + text}
	}
}

// logTail is the end of the daemon's log, as further lines of a message.
func logTail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-10):]
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return "; the end of " + path + ":\n" + strings.Join(lines, "\n")
}

// findDaemon looks for sampand beside this program, then in PATH.
func (a *app) findDaemon() (string, error) {
	if exe, err := executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), "sampand")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath("sampand")
	if err != nil {
		return "", &daemonError{"cannot start sampand: it is neither beside sampan nor in PATH; `make build` makes both"}
	}
	return path, nil
}

// endDaemon asks the daemon of our home to end, and returns when it has: the
// kernel gives its lock back then. A file with a number of a process that is
// no daemon any more does no harm: without the lock, nobody is signalled.
func (a *app) endDaemon(ctx context.Context) error {
	home, err := a.home()
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(home, "sampand.lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		return lock.Close() // nobody has it
	}
	text, err := os.ReadFile(filepath.Join(home, "sampand.pid"))
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || pid <= 1 {
		return errors.Join(fmt.Errorf("sampand.pid: %q is no process", text), lock.Close())
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return errors.Join(fmt.Errorf("end sampand: %w", err), lock.Close())
	}
	ended := make(chan error, 1)
	go func() {
		// Can't be interrupted; it is left behind when time is up.
		ended <- errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_EX), lock.Close())
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(endTimeout):
		return fmt.Errorf("sampand (process %d) has not ended after %s", pid, endTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endTimeout bounds how long a daemon may take to stop its machine.
const endTimeout = time.Minute
