// Command sampan-bench measures Sampan against the limits of the machine it
// runs on, each pair in turn in one run, and writes the medians and their
// ratios. Absolute figures change with the machine and its load; ratios say
// more.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "folder with sampan and sampand")
	out := flag.String("out", "", "file to write; default: standard output")
	runs := flag.Int("n", 5, "runs of each measurement, after one that does not count")
	files := flag.Int("files", 10_000, "files that the shares' comparison unpacks")
	only := flag.String("run", "", "measure only rows whose name, or a section whose heading, contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *bin, *out, *runs, *files, *only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one line of the table: ours against a limit.
type row struct {
	name  string
	limit string // what it is compared with
	bound string // what bounds it, and what would move it
	// unit is "ms", or "MiB/s" or "1/s" for rates, where more is better.
	unit         string
	ours, theirs func(context.Context) (float64, error)
}

func run(ctx context.Context, bin, out string, runs, files int, only string) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	var table strings.Builder
	for _, r := range b.rows() {
		if !strings.Contains(r.name, only) {
			continue
		}
		line, err := measure(ctx, r, runs)
		if errors.Is(err, errMissing) {
			line, err = fmt.Sprintf("| %s | %s | | | %s | |", r.name, err, r.limit), nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		fmt.Fprintln(os.Stderr, line)
		fmt.Fprintln(&table, line)
	}
	if err := b.do(ctx, "container", "prune", "-f"); err != nil { // what rows have left
		return err
	}
	if w := (shareWork{runs: runs, files: files, mib: bigSize >> 20}); strings.Contains(shareHeader, only) {
		lines, err := b.shareTable(ctx, w)
		if err != nil {
			return err
		}
		fmt.Fprint(os.Stderr, lines)
		table.WriteString(lines)
	}
	if strings.Contains(sizeHeader, only) {
		lines, err := b.sizeTable(ctx)
		if err != nil {
			return fmt.Errorf("sizes: %w", err)
		}
		fmt.Fprint(os.Stderr, lines)
		table.WriteString(lines)
	}
	text := fmt.Sprintf(header, runs, runtime.NumCPU(), b.describe(), time.Now().UTC().Format("2006-01-02")) + table.String() + footer
	if out == "" {
		_, err := fmt.Print(text)
		return err
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

const header = `# Benchmarks

Written by ` + "`make bench`" + `: Sampan beside a limit that no container runtime on this
machine can pass, or beside the fastest one. The two take turns; each figure is the median of %d runs after
one that does not count. %d processors; %s; %s.

Under emulation (TCG) everything in the guest is 10 to 30 times slower than on
hardware: read the ratios.

| what | Sampan | limit | ratio | the limit is | bound, we think, by |
|---|---:|---:|---:|---|---|
`

const footer = `
## What would move them

- **KVM**: everything above but the host's own figures.
- **vsock to the guest**: Linux's driver offers receive buffers of 4 KiB, so a
  packet, with all that the guest does for one, carries no more. Only another
  driver would help.
- **vsock's round trip**: without KVM each interrupt goes through QEMU's main loop,
  which is one wake-up more. And Linux tells its credit after each read that
  empties the socket: one packet of three, which a kernel patch would save. The
  host's own part is a fifth of it.
- **A published port's round trip**: the container's own process and the guest's
  TCP have half of what two processes in one container take; that is what
  user-mode networking's comes to, and leaves nothing for a way that took half of
  it. Ours has vsock's round trip and the agent's two wake-ups besides. Sockets of
  the container's network that the guest's kernel relays itself (BPF's sockmap
  knows vsock) would save the agent; Linux 6.12 bounds nothing of what piles up in
  them.
- **` + "`run`, `exec`" + `**: new namespaces, mounts and a process of the agent's own binary
  to enter them; most of it is page faults and system calls under emulation. Each
  step is in ` + "`guest/runtime`" + `'s TestContainerOrder. ` + "`start` and `stop`" + ` are parts of it.
- **Cold start**: the kernel; the tuned one (` + "`make guest KERNEL=tuned`" + `) boots in less
  than half of the time. Of the 2.5 s that are left with it, half is the kernel and
  the rest code that is run once, which the emulator translates for that: 85,000
  blocks of it, at 12 µs each. A third of them are Go's (its runtime, protobuf, JSON,
  netlink), in two programs.
- **Shares**: a FUSE request is a wake-up of the host and one of the guest; fewer
  requests would move the small files. Those that are left buy something: that the
  host's changes are seen at the next open, and that what is written is with the
  host when the call returns (docs/sharing.md: why nothing is kept back).
- **Outwards, and names outside**: each packet goes through the guest's TCP, QEMU and
  a TCP stack in the daemon. Relaying in the guest, over vsock, would save the two.
- **Pulls**: what the layers' gzip takes; zstd's is unpacked faster.
- **Logs**: a record for each line, made and read one by one; writing what comes as
  it comes, and parting it when it is read, would move the first of the two.
- **` + "`ps`" + `, names, volumes, a first ` + "`run`" + `**: at or near what bounds them.
- **Memory**: what the kernel's configuration leaves out, and a smaller agent.
`

// measure runs both sides in turn and formats the line.
func measure(ctx context.Context, r row, runs int) (string, error) {
	var ours, theirs []float64
	for i := range runs + 1 {
		for _, side := range []struct {
			name string
			f    func(context.Context) (float64, error)
			all  *[]float64
		}{{"Sampan", r.ours, &ours}, {"the limit", r.theirs, &theirs}} {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			v, err := side.f(ctx)
			cancel()
			if err != nil {
				return "", fmt.Errorf("%s: %w", side.name, err)
			}
			if i > 0 {
				*side.all = append(*side.all, v)
			}
		}
	}
	a, b := median(ours), median(theirs)
	return fmt.Sprintf("| %s | %s | %s | %.2f | %s | %s |", r.name, format(a, r.unit), format(b, r.unit), a/b, r.limit, r.bound), nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func format(v float64, unit string) string {
	digits := 0
	if v < 10 {
		digits = 2
	} else if v < 100 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, v, unit)
}

// millis times f.
func millis(f func() error) (float64, error) {
	begin := time.Now()
	err := f()
	return float64(time.Since(begin)) / float64(time.Millisecond), err
}

// rate times f, which moves n bytes.
func rate(n int64, f func() error) (float64, error) {
	begin := time.Now()
	err := f()
	return float64(n) / (1 << 20) / time.Since(begin).Seconds(), err
}
