package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guestClock asks a container for the time, over pipes that are open already.
type guestClock struct {
	in  io.Writer
	out *bufio.Scanner
}

func (h *home) guestClock(t *testing.T) *guestClock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(files.bin, "sampan"), "run", "-i", "--rm", "busybox", "sh", "-c", "while read x; do busybox adjtimex; done")
	cmd.Env, cmd.WaitDelay = h.environ(), 5*time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return &guestClock{in, bufio.NewScanner(out)}
}

// ask returns how far the guest's clock is ahead of the host's: somewhere from
// low to high, which differ by how long the answer took.
func (c *guestClock) ask(t *testing.T) (low, high time.Duration) {
	t.Helper()
	before := time.Now()
	if _, err := fmt.Fprintln(c.in, "now"); err != nil {
		t.Fatal(err)
	}
	// busybox's adjtimex, without arguments, tells the time to the microsecond.
	told := map[string]int64{}
	for len(told) < 2 && c.out.Scan() {
		if name, value, ok := strings.Cut(strings.TrimSpace(c.out.Text()), ":"); ok && strings.HasPrefix(name, "time.tv_") {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			told[name] = n
		}
	}
	after := time.Now()
	if len(told) < 2 {
		t.Fatalf("the container tells no time: %v", c.out.Err())
	}
	guest := time.Unix(told["time.tv_sec"], told["time.tv_usec"]*1000)
	return guest.Sub(after.Round(0)), guest.Sub(before.Round(0))
}

// right checks the clock by the quickest of some answers.
func (c *guestClock) right(t *testing.T, when string) {
	t.Helper()
	var low, high time.Duration
	for i := range 8 {
		if l, h := c.ask(t); i == 0 || h-l < high-low {
			low, high = l, h
		}
	}
	t.Logf("%s: the guest's clock is ahead by %s to %s", when, low.Round(time.Microsecond), high.Round(time.Microsecond))
	if high-low > 500*time.Millisecond {
		t.Errorf("%s: the quickest answer took %s: nothing can be told", when, high-low)
	}
	if low > 100*time.Millisecond || high < -100*time.Millisecond {
		t.Errorf("%s: the guest's clock is ahead by %s to %s, want 100 ms at most", when, low, high)
	}
}

// The machine stands still, as when a laptop sleeps, and its clock with it: a
// second after it goes on, the clock is right. So it is after somebody has set
// it wrong, a little later.
func TestClock(t *testing.T) {
	onceAsUser(t)
	sleep := 6 * time.Second // the host asks every 5
	if nightly() {
		sleep = time.Minute
	}
	h := newHome(t)
	h.load(t)
	c := h.guestClock(t)
	c.right(t, "after the boot")
	qemu := h.machinePid(t)
	// Stopping QEMU does not stop the clock that the guest counts by (a pause by
	// the hypervisor does), so its wall clock is put back by as much.
	back := fmt.Sprintf("@%d", time.Now().Add(-sleep).Unix())
	h.sampan(t, "machine", "shell", "busybox", "date", "-s", back)
	if low, _ := c.ask(t); low > -sleep/2 {
		t.Logf("the clock was corrected before the machine could be stopped: ahead by %s", low)
	}
	if err := syscall.Kill(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(sleep)
	if err := syscall.Kill(qemu, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	c.right(t, "a second after a stop")

	h.sampan(t, "machine", "shell", "busybox", "date", "-s", fmt.Sprintf("@%d", time.Now().Add(time.Hour).Unix()))
	eventually(t, 15*time.Second, "the clock is corrected", func() bool {
		low, high := c.ask(t)
		return low < 100*time.Millisecond && high > -100*time.Millisecond
	})
}
