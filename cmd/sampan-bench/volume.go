package main

import (
	"context"
	"fmt"
)

// volumeRows compare a volume with the file system that it is in, as the guest
// itself has it: the same work by the same program, without a container.
func (b *bench) volumeRows() []row {
	big := fmt.Sprintf("dd if=/dev/zero of=big bs=1M count=%d conv=fsync 2>/dev/null && rm big && sync", bigSize>>20)
	read := fmt.Sprintf("[ -f read ] || dd if=/dev/zero of=read bs=1M count=%d conv=fsync 2>/dev/null; sync; for i in 1 2 3 4 5 6 7 8; do cat read >/dev/null; done", bigSize>>20)
	files := fmt.Sprintf(fileScript, "files", smallFiles) + " && sync"
	line := func(what, script string, amount float64, unit string) row {
		side := func(where ...string) func(context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				seconds, err := b.inGuest(ctx, script, where...)
				if amount > 0 {
					return amount / seconds, err
				}
				return seconds * 1000, err
			}
		}
		return row{"volume: " + what, "the guest's bare ext4", "namespaces and seccomp alone", unit,
			side("exec", "-w", "/volume", "server"), side("machine", "shell")}
	}
	return []row{
		line("128 MiB written, synced and removed", big, bigSize>>20, "MiB/s"),
		line("128 MiB read from the guest's page cache", read, 8*bigSize>>20, "MiB/s"),
		line("1,000 files written, removed and synced", files, 0, "ms"),
	}
}

// inGuest runs a script by a command of sampan's, and tells the seconds that it
// took in the guest's own time. What is not in the folder of a container, it does
// in one of the data disk.
func (b *bench) inGuest(ctx context.Context, script string, command ...string) (seconds float64, err error) {
	timed := fmt.Sprintf("[ -d /volume ] || mkdir -p /data/bench; cd /volume 2>/dev/null || cd /data/bench || exit; "+
		"read a b </proc/uptime; { %s; } || exit; read c d </proc/uptime; echo $a $c", script)
	out, err := b.output(ctx, append(command, "sh", "-c", timed)...)
	if err != nil {
		return 0, err
	}
	var from, to float64
	if _, err := fmt.Sscan(string(out), &from, &to); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return max(to-from, 0.01), nil // what the clock tells apart
}
