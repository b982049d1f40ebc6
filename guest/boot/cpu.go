package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sampan/guest/network"
	containers "sampan/guest/runtime"
)

// holdDir is an empty cgroup whose settings keep the kernel patched for what
// containers use.
const holdDir = cgroupRoot + "/hold"

// processors brings up those that the kernel was told to leave alone. The kernel
// patches its own code when a feature is used for the first time, and QEMU's
// translator (seen in 7.2) now and then keeps on another processor what was there
// in between: the kernel dies of a breakpoint ("int3") that it has long taken
// away. So what patches code that runs often comes before: the boot's modules (the
// balloon patches the allocator of pages), quotas (the scheduler), device programs,
// the firewall's hooks (everything that sends or receives), and the secrets that
// the first connections have drawn.
func processors(off []string) error {
	return errors.Join(holdQuota(holdDir), containers.HoldDevices(holdDir), network.HoldHooks(), network.Exercise(), onlineCPUs(off))
}

// offlineCPUs are the processors that the kernel was told to leave alone, as the
// files that bring them up (maxcpus=1, which vm/qemu asks for under emulation:
// with one processor the kernel patches its own code in peace, with two one boot
// in thirty died of it).
func offlineCPUs(root string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "cpu[0-9]*", "online"))
	if err != nil {
		return nil, err
	}
	var off []string
	for _, f := range files {
		state, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("look for processors: %w", err)
		}
		if strings.TrimSpace(string(state)) == "0" {
			off = append(off, f)
		}
	}
	return off, nil
}

// onlineCPUs brings processors up.
func onlineCPUs(files []string) error {
	var errs []error
	for _, f := range files {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			errs = append(errs, fmt.Errorf("bring processor up: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Home keeps this process on the first processor of a machine that began with one.
// Its devices interrupt that one, and under emulation it costs more to wake
// somebody on another processor than all that is to be done for a packet: a MiB to
// the guest took 47 such wake-ups, and twice the time.
//
// At home the process is in no hurry either: Go's runtime looks after itself every
// 20 µs as long as there is something to do, and there each look costs more than
// that. With a timer slack of 1 ms the kernel lets it sleep for as long.
//
// The boot itself is in a hurry, and has things to do side by side: from the moment
// that there are more processors it uses them, until Settle.
//
// The zero Home leaves the process as the kernel wants it.
type Home struct {
	mu   sync.Mutex
	is   bool
	away int
	back func() // from the boot's stay away; nil when it has not begun, or is over
}

// moveIn is for a time when no other processor is up.
func (h *Home) moveIn() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.is = true
	return errors.Join(allow(firstCPU), eachThread(func(tid int) error {
		return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), []byte(strconv.Itoa(homeSlack)), 0)
	}))
}

// hurry lets the process run on all of n processors, Go's code included, until
// Settle.
func (h *Home) hurry(n int) {
	back := h.Away()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.is {
		return
	}
	runtime.GOMAXPROCS(n)
	h.back = func() {
		back()
		runtime.SetDefaultGOMAXPROCS() // as many as the process may run on
	}
}

// Stays says whether the process is at home.
func (h *Home) Stays() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.is
}

// Settle is for the end of the boot, when nothing is left to be done in a hurry.
// Idempotent.
func (h *Home) Settle() {
	h.mu.Lock()
	back := h.back
	h.back = nil
	h.mu.Unlock()
	if back != nil {
		back()
	}
}

// Timer slack, in nanoseconds (PR_SET_TIMERSLACK in prctl(2)).
const (
	usualSlack = 50_000
	homeSlack  = 1_000_000
)

// Start calls start, which starts a process, so that the process is none the wiser:
// it begins with the processors and the timer slack of the thread that has made it.
func (h *Home) Start(start func() (pid int, err error)) (int, error) {
	defer h.Away()()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	if slack == homeSlack {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, usualSlack, 0, 0, 0); err != nil {
			return 0, os.NewSyscallError("prctl", err)
		}
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, homeSlack, 0, 0, 0) // as it was
	}
	return start()
}

// Away lets the process run anywhere until back is called: for work that several
// threads share.
func (h *Home) Away() (back func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.is {
		return func() {}
	}
	// Errors: both were allowed before, and where a thread runs is but a wish.
	if h.away++; h.away == 1 {
		_ = allow((*unix.CPUSet).Fill)
	}
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.away--; h.away == 0 {
			_ = allow(firstCPU)
		}
	})
}

func firstCPU(set *unix.CPUSet) { set.Set(0) }

// allow sets where the threads of this process may run.
func allow(fill func(*unix.CPUSet)) error {
	var set unix.CPUSet
	fill(&set)
	return eachThread(func(tid int) error {
		return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(tid, &set))
	})
}

// eachThread does something to all threads of this process, that those which they
// make later have from the beginning.
func eachThread(do func(tid int) error) error {
	// After a round without a new thread there is none that is missed.
	seen := map[string]bool{}
	for again := true; again; {
		tasks, err := names("/proc/self/task")
		if err != nil {
			return fmt.Errorf("settle on a processor: %w", err)
		}
		again = false
		for _, t := range tasks {
			if seen[t] {
				continue
			}
			seen[t], again = true, true
			tid, err := strconv.Atoi(t)
			if err == nil {
				err = do(tid)
			}
			// A thread that has ended needs nothing.
			if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("settle on a processor: %w", err)
			}
		}
	}
	return nil
}

// names of what is in a folder, in no order.
func names(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// holdQuota has the kernel patch its scheduler for processor quotas (--cpus),
// which it does for as long as a cgroup has one.
func holdQuota(dir string) error {
	// A whole second in each (cgroup-v2.rst, cpu.max; microseconds).
	if err := os.WriteFile(filepath.Join(dir, "cpu.max"), []byte("1000000 1000000"), 0o644); err != nil {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	return nil
}

// cpuRoot is where the kernel shows processors.
const cpuRoot = "/sys/devices/system/cpu"
