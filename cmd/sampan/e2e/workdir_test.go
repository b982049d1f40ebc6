package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A working directory by a descriptor leads out of the container if the runtime
// has one open there (CVE-2024-21626): it is refused for every number, by its
// own name and by a link in the image, for a container's first process and for
// one more, and no process ever starts there.
func TestWorkdirByDescriptor(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "-d", "--name", "box", "busybox", "sh", "-c",
		"i=0; while [ $i -lt 256 ]; do ln -s /proc/self/fd/$i /link$i; i=$((i+1)); done; touch /linked; sleep 100000")
	h.sampan(t, "exec", "box", "sh", "-c", "while ! [ -e /linked ]; do sleep 0.1; done")
	var tries [][]string
	for n := range 256 {
		// The runtime's own descriptors have low numbers.
		if n < 20 || n == 255 || nightly() {
			tries = append(tries,
				[]string{"exec", "-w", fmt.Sprintf("/proc/self/fd/%d", n), "box"},
				[]string{"run", "--rm", "-w", fmt.Sprintf("/proc/self/fd/%d", n), "busybox"})
		}
		if n < 20 && n%4 == 3 || nightly() {
			tries = append(tries,
				[]string{"exec", "-w", fmt.Sprintf("/proc/self/fd/%d/../..", n), "box"},
				[]string{"exec", "-w", fmt.Sprintf("/link%d", n), "box"})
		}
	}
	todo := make(chan []string)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for args := range todo {
				r := h.try(t, "", "sampan", slices.Concat(args, []string{"sh", "-c", "echo started in $(pwd) with; ls"})...)
				// Docker's client has the reason of a failed exec in stdout.
				said := r.stdout + r.stderr
				if r.code < 125 || r.code > 127 || strings.Contains(said, "started in") ||
					!strings.Contains(said, "chdir to cwd") && !strings.Contains(said, ": mkdir /") {
					t.Errorf("%q: %+v, want a refusal of the working directory", args, r)
				}
			}
		})
	}
	for _, args := range tries {
		todo <- args
	}
	close(todo)
	wg.Wait()
	// It is those directories that were refused, not /proc.
	if out := h.sampan(t, "exec", "-w", "/proc/1", "box", "pwd"); out != "/proc/1\n" {
		t.Errorf("a process in /proc/1 is in %q", out)
	}
	if ids := strings.Fields(h.sampan(t, "ps", "-aq")); len(ids) != 1 {
		t.Errorf("containers left: %q", ids)
	}
}
