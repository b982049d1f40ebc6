package stage2

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// Main becomes stage 2, or the small init, and never returns, in a process
// that was started as one.
func Main() {
	switch {
	case len(os.Args) == 1 && os.Args[0] == Name:
		debug.SetGCPercent(-1)
		runtime.LockOSThread()
		os.Exit(run())
	case len(os.Args) > 1 && os.Args[0] == InitName:
		os.Exit(initMain(os.Args[1:]))
	}
}

// execError is an error that the agent tells apart.
type execError struct {
	class string
	err   error
}

func (e *execError) Error() string { return e.err.Error() }
func (e *execError) Unwrap() error { return e.err }

// run carries out the plan. It returns only when that failed, or after an exec.
func run() int {
	c := control{fd: ControlFD}
	err := protect()
	var plan Plan
	if err == nil {
		plan, err = readPlan()
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

// readPlan leaves PlanFD open, so that nothing else gets its number: it's
// reportFD's.
func readPlan() (Plan, error) {
	var plan Plan
	var st unix.Stat_t
	err := unix.Fstat(PlanFD, &st)
	if err == nil {
		text := make([]byte, st.Size)
		n := 0
		if n, err = unix.Pread(PlanFD, text, 0); err == nil {
			err = json.Unmarshal(text[:n], &plan)
		}
	}
	if err != nil {
		return Plan{}, fmt.Errorf("read plan: %w", err)
	}
	return plan, nil
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

// control is the socket to the agent.
type control struct{ fd int }

// send sends m, with a descriptor unless it's negative.
func (c control) send(m Message, fd int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := unix.Sendmsg(c.fd, text, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell the agent %q: %w", m.Kind, err)
	}
	return nil
}

// await waits for the agent's message of that kind.
func (c control) await(kind string) error {
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(c.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for %q: %w", kind, err)
		}
		if n == 0 {
			return fmt.Errorf("wait for %q: the agent has given up", kind)
		}
		var m Message
		if err := json.Unmarshal(buf[:n], &m); err != nil || m.Kind != kind {
			return fmt.Errorf("wait for %q: got %q", kind, buf[:n])
		}
		return nil
	}
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
