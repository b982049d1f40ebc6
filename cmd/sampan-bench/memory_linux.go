package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const sizeHeader = `
## Sizes

| what | Sampan | goal | bound by |
|---|---:|---:|---|
`

const mib = 1 << 20

// sizeTable is what a machine without containers takes, what comes back after
// one has read a gigabyte, and what an installation takes. The machine boots
// anew.
func (b *bench) sizeTable(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := b.stopDaemon(); err != nil {
		return "", err
	}
	if err := b.do(ctx, "run", "--rm", "busybox", "true"); err != nil {
		return "", err
	}
	select { // what the boot has left is given back meanwhile
	case <-time.After(15 * time.Second):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	used, pid, err := b.guestMemory(ctx)
	if err != nil {
		return "", err
	}
	agent, err := b.agentMemory(ctx)
	if err != nil {
		return "", err
	}
	before, after, err := b.readGigabyte(ctx, pid)
	if err != nil {
		return "", err
	}
	size, err := b.installed()
	if err != nil {
		return "", err
	}
	return sizeHeader + fmt.Sprintf(`| an idle guest's used memory (MemTotal − MemAvailable) | %d MiB | 60 MiB | the kernel's own structures, the agent |
| the agent's resident set | %d MiB | 20 MiB | the Go runtime and the program's text |
| QEMU's resident set when a container has read 1 GiB | %d MiB | | the guest's page cache |
| the same 60 s after it ended | %d MiB (%d less) | 800 less | what the guest touched for good; QEMU's own, with what it has translated |
| installed, without images | %d MiB | 60 MiB | the kernel and Go's programs |
`, used/mib, agent/mib, before/mib, after/mib, (before-after)/mib, size/mib), nil
}

// guestMemory is the guest's used memory, and QEMU's process.
func (b *bench) guestMemory(ctx context.Context) (used int64, pid int, err error) {
	out, err := b.output(ctx, "machine", "status", "--json")
	if err != nil {
		return 0, 0, err
	}
	var s struct {
		Pid   int
		Guest struct {
			Total     int64 `json:"memory_total"`
			Available int64 `json:"memory_available"`
		}
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return 0, 0, err
	}
	if s.Guest.Total == 0 {
		return 0, 0, fmt.Errorf("the status says nothing of the guest's memory: %s", out)
	}
	return s.Guest.Total - s.Guest.Available, s.Pid, nil
}

// agentMemory asks the guest for its PID 1's resident set.
func (b *bench) agentMemory(ctx context.Context) (int64, error) {
	shell := b.command(ctx, "machine", "shell")
	shell.Stdin = strings.NewReader("cat /proc/1/status\n")
	out, err := shell.Output()
	if err != nil {
		return 0, err
	}
	return residentSet(out)
}

var rssLine = regexp.MustCompile(`VmRSS:\s+([0-9]+) kB`)

// residentSet reads proc_pid_status(5).
func residentSet(status []byte) (int64, error) {
	m := rssLine.FindSubmatch(status)
	if m == nil {
		return 0, fmt.Errorf("no VmRSS in %q", status)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10, err
}

// readGigabyte has a container read a gigabyte; QEMU's resident set at the end of
// that, and a minute later.
func (b *bench) readGigabyte(ctx context.Context, pid int) (before, after int64, err error) {
	name := filepath.Join(b.share, "gigabyte")
	f, err := os.Create(name)
	if err != nil {
		return 0, 0, err
	}
	defer os.Remove(name)
	if err := errors.Join(f.Truncate(1<<30), f.Close()); err != nil {
		return 0, 0, err
	}
	if err := b.do(ctx, "run", "--rm", "-v", b.share+":/share:ro", "busybox", "dd", "if=/share/gigabyte", "of=/dev/null", "bs=1M", "status=none"); err != nil {
		return 0, 0, err
	}
	rss := func() (int64, error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		return residentSet(text)
	}
	if before, err = rss(); err != nil {
		return 0, 0, err
	}
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	after, err = rss()
	return before, after, err
}

// installed is the size of what `make install` copies.
func (b *bench) installed() (int64, error) {
	var sum int64
	add := func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	}
	for _, p := range []string{b.sampan, b.sampan + "d", filepath.Dir(b.bundle.Kernel)} {
		if err := filepath.WalkDir(p, add); err != nil {
			return 0, err
		}
	}
	return sum, nil
}
