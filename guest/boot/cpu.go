package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

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
// the guest took 47 such wake-ups, and twice the time. The zero Home leaves the
// process where the kernel wants it.
type Home struct {
	mu   sync.Mutex
	is   bool
	away int
}

// settle is for a time when no other processor is up.
func (h *Home) settle() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.is = true
	return allow(firstCPU)
}

// Away lets the process run anywhere until back is called: for work that several
// threads share, and for starting a process, which begins with the processors of
// the one that starts it.
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
	// A thread begins with what the one that has made it was allowed: after a round
	// without a new one there is none that is missed.
	seen := map[string]bool{}
	for again := true; again; {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("choose a processor: %w", err)
		}
		again = false
		for _, t := range tasks {
			if seen[t.Name()] {
				continue
			}
			seen[t.Name()], again = true, true
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return fmt.Errorf("choose a processor: %w", err)
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("choose a processor: %w", os.NewSyscallError("sched_setaffinity", err))
			}
		}
	}
	return nil
}

// enableQuota has the kernel patch its scheduler for processor quotas (--cpus)
// while there is one processor: with two, under emulation, the first quota was
// seen to kill the kernel ("int3" in __set_next_task_fair). The patch stays for
// as long as a cgroup with a quota is there, so an empty one is.
func enableQuota(root string) error {
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpu"), 0o644); err != nil {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	dir := filepath.Join(root, "quota")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	// A second in each second (cgroup-v2.rst, cpu.max; microseconds).
	if err := os.WriteFile(filepath.Join(dir, "cpu.max"), []byte("1000000 1000000"), 0o644); err != nil {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	return nil
}

// cpuRoot is where the kernel shows processors.
const cpuRoot = "/sys/devices/system/cpu"
