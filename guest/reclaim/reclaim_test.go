package reclaim

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What it does to a real guest is tested in cmd/sampan-agent.

func TestField(t *testing.T) {
	const stat = "anon 1\nactive_file 4096\ninactive_file 12\n"
	const pressure = "some avg10=0.00 avg60=0.01 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=56\n"
	for _, tc := range []struct {
		text, key string
		want      int64
		fails     bool
	}{
		{text: stat, key: "active_file", want: 4096},
		{text: stat, key: "inactive_file", want: 12},
		{text: stat, key: "file", fails: true},
		{text: pressure, key: "some", want: 1234},
		{text: "some", key: "some", fails: true},
		{text: "some avg10=0.00", key: "some", fails: true},
		{text: "", key: "some", fails: true},
	} {
		if got, err := field(tc.text, tc.key); got != tc.want || (err != nil) != tc.fails {
			t.Errorf("%q of %q: %d, %v", tc.key, tc.text, got, err)
		}
	}
}

func TestQuiet(t *testing.T) {
	now := time.Now()
	at := func(after, cpu, stall time.Duration) sample {
		return sample{at: now.Add(after), cpu: time.Hour + cpu, stall: time.Minute + stall}
	}
	for _, tc := range []struct {
		next sample
		want bool
	}{
		{at(5*time.Second, 0, 0), true},
		{at(5*time.Second, 250*time.Millisecond, 50*time.Millisecond), true},
		{at(5*time.Second, 251*time.Millisecond, 0), false},
		{at(5*time.Second, 0, 51*time.Millisecond), false},
	} {
		if got := at(0, 0, 0).quiet(tc.next); got != tc.want {
			t.Errorf("%+v: %v, want %v", tc.next, got, tc.want)
		}
	}
}

// cgroups is a directory with what a Reclaimer reads.
type cgroups struct {
	t   *testing.T
	dir string
	now time.Time
}

func (c *cgroups) write(name, format string, args ...any) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), fmt.Appendf(nil, format, args...), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// set is the state from now on: MiB of cache, time used and waited.
func (c *cgroups) set(cache int, cpu, stall time.Duration) {
	c.t.Helper()
	c.write("memory.stat", "file 1\nactive_file %d\ninactive_file %d\n", 1<<20, (cache-1)<<20)
	c.write("cpu.stat", "usage_usec %d\nuser_usec 0\n", cpu.Microseconds())
	c.write("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\n", stall.Microseconds())
	c.write("memory.reclaim", "")
}

// looks lets r look once, and wants it to have asked for the bytes last.
func (c *cgroups) looks(r *Reclaimer, step, want string) {
	c.t.Helper()
	c.now = c.now.Add(interval)
	if err := r.look(c.now); err != nil {
		c.t.Fatalf("%s: %v", step, err)
	}
	got, err := os.ReadFile(filepath.Join(c.dir, "memory.reclaim"))
	if err != nil {
		c.t.Fatal(err)
	}
	if string(got) != want {
		c.t.Errorf("%s: reclaimed %q, want %q", step, got, want)
	}
}

// TestLook: the last step is what's left of the 164 MiB after keep and one
// whole step. The cache of the test never becomes less.
func TestLook(t *testing.T) {
	// In the past: shrink looks at the real clock.
	c := &cgroups{t: t, dir: t.TempDir(), now: time.Now().Add(-time.Hour)}
	const last = "37748736" // 36 MiB
	r := &Reclaimer{Root: c.dir, Containers: c.dir, Compact: filepath.Join(c.dir, "compact"), Log: slog.New(slog.DiscardHandler)}
	c.set(164, 0, 0)
	r.last = sample{at: c.now}
	c.looks(r, "quiet for 5 s", "")
	c.looks(r, "quiet for 10 s", last)

	c.set(164, time.Second, 0)
	c.looks(r, "at work", "")
	c.looks(r, "quiet for 5 s again", "")
	c.looks(r, "quiet for 10 s again", last)

	c.set(164, time.Second, time.Second)
	c.looks(r, "waiting for memory", "")

	c.set(127, time.Second, time.Second)
	for range 4 {
		c.looks(r, "little cache", "")
	}
	r.pause = c.now.Add(2*interval + 1)
	c.set(164, time.Second, time.Second)
	c.looks(r, "the kernel had nothing", "")
	c.looks(r, "the kernel had nothing", "")
	c.looks(r, "after the pause", last)

	if err := os.Remove(filepath.Join(c.dir, "cpu.stat")); err != nil {
		t.Fatal(err)
	}
	if err := r.look(c.now); err == nil {
		t.Error("no error without the cgroup")
	}
}
