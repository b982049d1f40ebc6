// Package reclaim gives the memory of page cache that nobody uses back to the
// host.
//
// What containers read and write stays in the guest's page cache for as long
// as nothing in the guest wants the memory. To the host that is memory like any
// other. So when containers have been quiet for a while, the cache is reduced
// to its most recently used part. Free memory then leaves by itself: the
// guest's kernel reports it to the hypervisor (virtio-balloon's free page
// reporting), some 100 MiB a second, in blocks of 2 MiB.
//
//	in use ──containers quiet for 10 s──► reclaim, 64 MiB at a time
//	   ▲                                             │
//	   └──────── they work, or wait for memory ──────┘
//
// Nothing has to be asked back from the host: memory that was given away is
// there again when it is touched.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	interval = 5 * time.Second
	// quietFor is how many intervals in a row containers must have been quiet.
	quietFor = 2
	// keep is how many bytes of cache are left: enough for the files that the
	// next container of the same image opens.
	keep = 64 << 20
	// step is how many bytes are reclaimed between two looks at the containers.
	step = 64 << 20
	// retry is the pause when there is cache that can't be reclaimed, as when
	// it was written and isn't on the disk yet (the kernel takes 35 s).
	retry = 40 * time.Second
)

// Reclaimer watches cgroups (version 2).
type Reclaimer struct {
	// Root is the directory of the root cgroup, whose cache is reclaimed.
	Root string
	// Containers is the directory of the cgroup that all containers are in.
	Containers string
	// Compact is the file that makes the kernel move what is left together, so
	// that what is free comes in blocks that go to the host:
	// /proc/sys/vm/compact_memory.
	Compact string
	Log     *slog.Logger

	last  sample
	quiet int       // intervals in a row
	pause time.Time // nothing before this
}

// sample is the state at a point in time.
type sample struct {
	at    time.Time
	cache int64         // bytes of files' pages
	cpu   time.Duration // that containers have used
	stall time.Duration // in which a container has waited for memory
}

// quiet says whether nothing happened between s and next: containers used at
// most a twentieth of one processor, and hardly waited for memory.
func (s sample) quiet(next sample) bool {
	d := next.at.Sub(s.at)
	return next.cpu-s.cpu <= d/20 && next.stall-s.stall <= d/100
}

// Run works until ctx ends. An error is one of reading the cgroups' files.
func (r *Reclaimer) Run(ctx context.Context) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			if err := r.look(now); err != nil {
				return err
			}
		}
	}
}

// look compares now with the last look, and reclaims if it's time to.
func (r *Reclaimer) look(now time.Time) error {
	s, err := r.sample(now)
	if err != nil {
		return err
	}
	quiet := !r.last.at.IsZero() && r.last.quiet(s) // nothing is known of the time before the first look
	r.last = s
	if !quiet {
		r.quiet, r.pause = 0, time.Time{}
		return nil
	}
	if r.quiet++; r.quiet < quietFor || s.cache < keep+step || now.Before(r.pause) {
		return nil
	}
	return r.shrink(s)
}

// shrink reclaims until keep is left, or containers aren't quiet any more.
func (r *Reclaimer) shrink(begin sample) error {
	s := begin
	for left := begin.cache - keep; left > 0 && begin.quiet(s); left -= step {
		err := r.reclaim(min(step, left))
		if errors.Is(err, unix.EAGAIN) {
			r.pause = s.at.Add(retry)
			break
		}
		if err != nil {
			return err
		}
		if s, err = r.sample(time.Now()); err != nil {
			return err
		}
	}
	if !begin.quiet(s) {
		r.quiet = 0
	} else if err := os.WriteFile(r.Compact, []byte("1"), 0); err != nil {
		return err
	}
	r.last = s
	r.Log.Info("page cache reduced", "from", mib(begin.cache), "to", mib(s.cache), "in", s.at.Sub(begin.at).Round(time.Millisecond))
	return nil
}

func mib(bytes int64) string { return strconv.FormatInt(bytes>>20, 10) + "MiB" }

// reclaim makes the kernel reclaim bytes; EAGAIN when there was less.
func (r *Reclaimer) reclaim(bytes int64) error {
	return os.WriteFile(filepath.Join(r.Root, "memory.reclaim"), strconv.AppendInt(nil, bytes, 10), 0)
}

func (r *Reclaimer) sample(at time.Time) (sample, error) {
	s := sample{at: at}
	for _, f := range []struct {
		dir, name, key string
		value          *int64
		unit           int64
	}{
		{r.Root, "memory.stat", "active_file", &s.cache, 1},
		{r.Root, "memory.stat", "inactive_file", &s.cache, 1},
		{r.Containers, "cpu.stat", "usage_usec", (*int64)(&s.cpu), int64(time.Microsecond)},
		{r.Containers, "memory.pressure", "some", (*int64)(&s.stall), int64(time.Microsecond)},
	} {
		path := filepath.Join(f.dir, f.name)
		text, err := os.ReadFile(path)
		if err != nil {
			return s, err
		}
		n, err := field(string(text), f.key)
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		*f.value += n * f.unit
	}
	return s, nil
}

// field reads a number from one of a cgroup's flat files: "key N", or of the
// pressure files "key avg10=… total=N".
func field(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != key {
			continue
		}
		last := strings.TrimPrefix(words[len(words)-1], "total=")
		return strconv.ParseInt(last, 10, 64)
	}
	return 0, fmt.Errorf("no line %q", key)
}
