package stage2

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// Main becomes stage 2, and never returns, in a process that was started as one.
// The small init does not come here (see entry), if it is linked as it should be.
func Main() {
	switch {
	case len(os.Args) > 0 && os.Args[0] == Name:
		debug.SetGCPercent(-1)
		runtime.LockOSThread()
		os.Exit(run(os.Args[1:]))
	case len(os.Args) > 1 && os.Args[0] == InitName:
		fmt.Fprintln(os.Stderr, InitName+": not linked with -E sampan/guest/runtime/stage2.entry")
		os.Exit(1)
	}
}

// execError is an error that the agent tells apart.
type execError struct {
	class string
	err   error
}

func (e *execError) Error() string { return e.err.Error() }
func (e *execError) Unwrap() error { return e.err }

// run lets go of mounts, waits for the plan and carries it out. It returns only
// when that failed, or after an exec.
func run(mounts []string) int {
	c := control{fd: ControlFD}
	err := protect()
	if err == nil {
		err = leave(mounts)
	}
	var plan Plan
	if err == nil {
		plan, err = c.plan()
	}
	if err == nil {
		err = setOOMScore(plan.Process.OOMScoreAdj)
	}
	if err == nil {
		if plan.Root != nil {
			err = create(&plan, c)
		} else {
			err = enter(&plan, c)
		}
	}
	if err == nil {
		return 0
	}
	c.fail(err)
	return 1
}

// protect makes the process undumpable until execve, and every descriptor
// beyond the known ones close then.
func protect() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	return nil
}

// setOOMScore says how soon the kernel picks this process, and what it forks
// or becomes, when memory is used up.
func setOOMScore(adj *int) error {
	if adj == nil {
		return nil
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*adj)), 0); err != nil {
		return fmt.Errorf("set OOM score: %w", err)
	}
	return nil
}

// fail reports err. When even that fails, the end of the process tells.
func (c control) fail(err error) {
	m := Message{Kind: "error", Err: err.Error()}
	var e *execError
	if errors.As(err, &e) {
		m.Class = e.class
	}
	var z *zombieError
	if errors.As(err, &z) {
		m.Pid = z.pid
	}
	_ = c.send(m, -1)
}
