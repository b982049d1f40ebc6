package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guestClock asks a container for the time, over pipes that are open already.
type guestClock struct {
	in  io.Writer
	out *bufio.Scanner
}

// clockLimit is how far the guest's clock may be off.
const clockLimit = 100 * time.Millisecond

func (h *home) guestClock(t *testing.T) *guestClock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	// Nothing but busybox's shell itself, which is quick.
	cmd := exec.CommandContext(ctx, filepath.Join(files.bin, "sampan"), "run", "-i", "--rm", "busybox", "sh", "-c",
		`while read x; do read up idle < /proc/uptime; echo $EPOCHREALTIME $up; done`)
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

// A clockAnswer is how far the guest's clock is ahead of the host's: somewhere
// from low to high, which differ by how long the answer took. up is how long the
// guest has run by its own counting.
type clockAnswer struct{ low, high, up time.Duration }

func (a clockAnswer) String() string {
	return fmt.Sprintf("ahead by %s to %s", a.low.Round(time.Microsecond), a.high.Round(time.Microsecond))
}

// right: wherever it is, it is within the limit. wrong: wherever it is, it is not.
func (a clockAnswer) right() bool { return a.low >= -clockLimit && a.high <= clockLimit }
func (a clockAnswer) wrong() bool { return a.low > clockLimit || a.high < -clockLimit }

func (c *guestClock) ask(t *testing.T) clockAnswer {
	t.Helper()
	before := time.Now()
	if _, err := fmt.Fprintln(c.in, "now"); err != nil {
		t.Fatal(err)
	}
	if !c.out.Scan() {
		t.Fatalf("the container tells no time: %v", c.out.Err())
	}
	after := time.Now()
	var sec, usec int64
	var up float64
	if _, err := fmt.Sscanf(c.out.Text(), "%d.%d %f", &sec, &usec, &up); err != nil {
		t.Fatalf("the container tells %q for a time: %v", c.out.Text(), err)
	}
	guest := time.Unix(sec, usec*1000)
	return clockAnswer{guest.Sub(after.Round(0)), guest.Sub(before.Round(0)), time.Duration(up * float64(time.Second))}
}

// right wants the clock to be right now. An answer that took too long to tell is
// asked for again, until it's one that tells.
func (c *guestClock) right(t *testing.T, when string) clockAnswer {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		a := c.ask(t)
		t.Logf("%s: the guest's clock is %s", when, a)
		if a.wrong() {
			t.Errorf("%s: the guest's clock is %s, want %s at most", when, a, clockLimit)
		}
		if a.wrong() || a.right() {
			return a
		}
	}
	t.Fatalf("%s: every answer took too long: nothing can be told", when)
	return clockAnswer{}
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
	monitor := filepath.Join(filepath.Dir(h.dir), "monitor")
	h.env = append(h.env, "PATH="+monitoredQEMU(t, monitor)+":"+files.bin+":"+os.Getenv("PATH"))
	h.load(t)
	c := h.guestClock(t)
	before := c.right(t, "after the boot")
	asked := time.Now()
	qemu := dialMonitor(t, monitor)
	said := h.log(t)
	qemu.execute(t, "stop")
	time.Sleep(sleep)
	if got := qemu.execute(t, "query-status"); got["status"] != "paused" || got["running"] != false {
		t.Errorf("the machine did not stand still: %v", got)
	}
	qemu.execute(t, "cont")
	time.Sleep(time.Second)
	after := c.right(t, "a second after a stop")
	// What the guest counts by stood still: without a correction its clock would
	// be behind by as much.
	behind := time.Since(asked) - (after.up - before.up)
	t.Logf("the guest's time stood still for %s", behind)
	if (behind - sleep).Abs() > sleep/4 {
		t.Errorf("the guest's time stood still for %s, want about %s", behind, sleep)
	}
	if log := strings.TrimPrefix(h.log(t), said); !strings.Contains(log, "the guest's clock is set") {
		t.Errorf("the daemon says nothing of the guest's clock, but %q", log)
	}

	h.sampan(t, "machine", "shell", "busybox", "date", "-s", fmt.Sprintf("@%d", time.Now().Add(time.Hour).Unix()))
	eventually(t, 15*time.Second, "the clock is corrected", func() bool { return !c.ask(t).wrong() })
	c.right(t, "after it was set wrong")
}

// log is what the daemon has said.
func (h *home) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "sampand.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// monitoredQEMU makes a folder with a QEMU that has a second monitor.
func monitoredQEMU(t *testing.T, socket string) string {
	t.Helper()
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" -qmp unix:%s,server=on,wait=off\n", real, socket)
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A qmpClient speaks QEMU's control protocol: an object with "return" or "error"
// for each command, and events at any time.
type qmpClient struct {
	conn net.Conn
	dec  *json.Decoder
}

func dialMonitor(t *testing.T, socket string) *qmpClient {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &qmpClient{conn, json.NewDecoder(conn)}
	m.execute(t, "qmp_capabilities")
	return m
}

func (m *qmpClient) execute(t *testing.T, command string) map[string]any {
	t.Helper()
	m.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(m.conn, "{\"execute\": %q}\n", command); err != nil {
		t.Fatal(err)
	}
	for {
		var answer struct {
			Return map[string]any
			Error  any
		}
		if err := m.dec.Decode(&answer); err != nil || answer.Error != nil {
			t.Fatalf("QMP %s: %v, %v", command, answer.Error, err)
		}
		if answer.Return != nil {
			return answer.Return
		}
	}
}
