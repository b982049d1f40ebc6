package stage2

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// initMain is the small init: it starts args[0] with the arguments args[1:] in
// a process group of its own (the terminal's foreground), forwards signals to
// it, reaps whatever else ends, and ends as it did. It runs as the container's
// user, with all its limits.
func initMain(args []string) int {
	debug.SetGCPercent(-1)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	_, notTerminal := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	pid, _, err := syscall.StartProcess(args[0], args[1:], &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: notTerminal == nil},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "exec %s: %v\n", args[0], err)
		if class(err) == ClassNotFound {
			return 127
		}
		return 126
	}
	for s := range signals {
		number := s.(syscall.Signal)
		switch number {
		case unix.SIGCHLD:
			if code, ended := reap(pid); ended {
				return code
			}
		case unix.SIGURG: // the Go runtime's own
		default:
			_ = unix.Kill(pid, number)
		}
	}
	return 0
}

// reap reaps everything that has ended, and tells whether pid has.
func reap(pid int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || got == 0:
			return code, ended
		case got == pid && status.Signaled():
			code, ended = 128+int(status.Signal()), true
		case got == pid && status.Exited():
			code, ended = status.ExitStatus(), true
		}
	}
}
