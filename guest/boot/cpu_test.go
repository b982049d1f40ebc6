package boot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlineCPUs(t *testing.T) {
	root := t.TempDir()
	for name, state := range map[string]string{"cpu0": "1\n", "cpu1": "0\n", "cpu10": "0\n"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name, "online"), []byte(state), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	off, err := offlineCPUs(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := onlineCPUs(off); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"cpu0": "1\n", "cpu1": "1", "cpu10": "1"} {
		if got, err := os.ReadFile(filepath.Join(root, name, "online")); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if off, err = offlineCPUs(root); err != nil || len(off) != 0 {
		t.Errorf("still off: %q, %v", off, err)
	}
}

// TestHome: every thread stays on the first processor, but while somebody is away.
// What is started may run anywhere, and is as punctual as others.
func TestHome(t *testing.T) {
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	if own.Count() < 2 || !own.IsSet(0) {
		t.Skip("needs two processors, and the first one")
	}
	t.Cleanup(func() {
		err := errors.Join(allow(func(set *unix.CPUSet) { *set = own }), eachThread(func(tid int) error {
			return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), []byte(strconv.Itoa(usualSlack)), 0)
		}))
		if err != nil {
			t.Error(err)
		}
	})
	for range 5 { // more threads
		end := make(chan bool)
		t.Cleanup(func() { close(end) })
		go func() {
			runtime.LockOSThread()
			<-end
		}()
	}
	check := func(when string, want int) {
		t.Helper()
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			var set unix.CPUSet
			if err := unix.SchedGetaffinity(tid, &set); err != nil && err != unix.ESRCH {
				t.Fatal(err)
			} else if err == nil && set.Count() != want {
				t.Errorf("%s thread %d may run on %d processors, want %d", when, tid, set.Count(), want)
			}
		}
	}
	var h Home
	h.Away()()
	check("before all", own.Count())
	if err := h.moveIn(); err != nil {
		t.Fatal(err)
	}
	check("settled,", 1)
	var out strings.Builder
	child := exec.Command("cat", "/proc/self/timerslack_ns", "/proc/self/status")
	child.Stdout = &out
	_, err := h.Start(func() (int, error) { return 0, child.Start() })
	if err = errors.Join(err, child.Wait()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "50000\n") || strings.Contains(out.String(), "\nCpus_allowed_list:\t0\n") {
		t.Errorf("a process begins with the slack and the processors of ours:\n%s", &out)
	}
	check("after a start,", 1)
	back := h.Away()
	second := h.Away()
	check("away,", own.Count())
	back()
	back() // once is enough
	check("with one still away,", own.Count())
	second()
	check("back,", 1)

	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	h.hurry(2)
	check("in a hurry,", own.Count())
	if n := runtime.GOMAXPROCS(0); n != 2 {
		t.Errorf("in a hurry Go uses %d processors, want 2", n)
	}
	h.Settle()
	h.Settle() // once is enough
	check("after the boot,", 1)
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("after the boot Go uses %d processors, want 1", n)
	}
}

// TestHomeless: where every processor was there from the beginning, nothing is
// changed.
func TestHomeless(t *testing.T) {
	procs := runtime.GOMAXPROCS(0)
	var h Home
	h.hurry(procs + 1)
	if n := runtime.GOMAXPROCS(0); n != procs {
		t.Errorf("Go uses %d processors, want %d", n, procs)
	}
	h.Settle()
}

func TestHoldQuota(t *testing.T) {
	root := t.TempDir()
	if err := holdQuota(root); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, "cpu.max")); err != nil || string(got) != "1000000 1000000" {
		t.Errorf("cpu.max: %q, %v", got, err)
	}
}
