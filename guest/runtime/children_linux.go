package runtime

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Children is the list of PID 1's children that somebody waits for. PID 1 also
// inherits processes that nobody waits for, and has to reap those; it must not
// reap the others, or their owners never learn how they ended.
//
// The rule: whoever starts a process in PID 1 does so inside Start, and calls
// Done after having waited for it. Run reaps everything else.
//
// The zero Children is ready for use.
type Children struct {
	// Starter calls what starts a process, when this process has something that the
	// other must not begin with (boot.Home.Start). Optional.
	Starter func(start func() (pid int, err error)) (int, error)

	mu    sync.RWMutex // held by Start for reading, so that no process is reaped before it is listed
	lists sync.Mutex
	owned map[int]bool
	poke  chan struct{}
}

// Start calls start, which starts a process and returns its pid, and lists the
// process. While start runs nothing is reaped; it should not take long.
func (c *Children) Start(start func() (pid int, err error)) (int, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	run := c.Starter
	if run == nil {
		run = func(start func() (int, error)) (int, error) { return start() }
	}
	pid, err := run(start)
	if err != nil {
		return 0, err
	}
	c.lists.Lock()
	defer c.lists.Unlock()
	c.init()
	c.owned[pid] = true
	return pid, nil
}

// Owned tells whether somebody waits for the process.
func (c *Children) Owned(pid int) bool {
	c.lists.Lock()
	defer c.lists.Unlock()
	return c.owned[pid]
}

// Done says that the process has been waited for.
func (c *Children) Done(pid int) {
	c.lists.Lock()
	defer c.lists.Unlock()
	c.init()
	delete(c.owned, pid)
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// init makes the maps; lists is held.
func (c *Children) init() {
	if c.owned == nil {
		c.owned = map[int]bool{}
		c.poke = make(chan struct{}, 1)
	}
}

// Run reaps processes that nobody waits for, until ctx is cancelled. Only
// PID 1 has a use for it.
func (c *Children) Run(ctx context.Context) error {
	c.lists.Lock()
	c.init()
	c.lists.Unlock()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		if err := c.reap(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
		case <-c.poke:
		}
	}
}

// reap reaps orphans until there is none, or the kernel shows an owned process
// first: its owner is about to wait, and Done then wakes Run.
func (c *Children) reap() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var info unix.Siginfo
		err := ignoreEINTR(func() error {
			return unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		})
		if err == unix.ECHILD {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for orphans: %w", err)
		}
		pid := siginfoPid(&info)
		if pid == 0 || c.Owned(pid) {
			return nil
		}
		if err := reapOrphan(pid); err != nil {
			return err
		}
	}
}

// reapOrphan reaps a process that nobody seemed to wait for. ECHILD is no error:
// then its owner has waited for it, and called Done, after it was shown here.
func reapOrphan(pid int) error {
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	if err != nil && err != unix.EINTR && err != unix.ECHILD {
		return fmt.Errorf("reap orphan %d: %w", pid, err)
	}
	return nil
}

func ignoreEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
