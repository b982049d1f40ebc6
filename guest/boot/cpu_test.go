package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
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

// TestHome: every thread stays on the first processor, but while somebody is away;
// what is started then may run anywhere.
func TestHome(t *testing.T) {
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	if own.Count() < 2 || !own.IsSet(0) {
		t.Skip("needs two processors, and the first one")
	}
	t.Cleanup(func() {
		if err := allow(func(set *unix.CPUSet) { *set = own }); err != nil {
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
		out, err := exec.Command("grep", "-c", "^Cpus_allowed_list:\t0$", "/proc/self/status").Output()
		if err != nil && len(out) == 0 {
			t.Fatal(err)
		}
		if first := string(out) == "1\n"; first != (want == 1) {
			t.Errorf("%s a process that is started stays on the first processor: %v", when, first)
		}
	}
	var h Home
	h.Away()()
	check("before all", own.Count())
	if err := h.settle(); err != nil {
		t.Fatal(err)
	}
	check("settled,", 1)
	back := h.Away()
	second := h.Away()
	check("away,", own.Count())
	back()
	back() // once is enough
	check("with one still away,", own.Count())
	second()
	check("back,", 1)
}

func TestEnableQuota(t *testing.T) {
	root := t.TempDir()
	for range 2 { // a cgroup that is there already is fine
		if err := enableQuota(root); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"cgroup.subtree_control": "+cpu", "quota/cpu.max": "1000000 1000000"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}
