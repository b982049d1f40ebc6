package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	listed  = 500      // containers that `ps` lists
	logSize = 16 << 20 // bytes that a container writes into its log
)

// logScript writes logSize bytes, in lines of 128.
var logScript = fmt.Sprintf("yes $(printf %%0127d 7) | head -n %d", logSize/128)

// dailyRows are of the commands that everybody uses, beside run and exec.
func (b *bench) dailyRows() []row {
	return []row{
		{name: "20 × `run --rm busybox true`, one after the other", limit: "20 × `crun run`", bound: "as one", unit: "ms", ours: b.runInTurn, theirs: b.crunInTurn},
		{name: "`start` of a container that has ended", limit: "`crun run` of the same alone, in the same guest", bound: "as `run`, without making and removing a container", unit: "ms", ours: b.start, theirs: b.crunRun},
		{name: "`stop` of a process that ends at once", limit: "fork, kill and wait in the guest", bound: "a signal, and taking down namespaces, a network interface, an overlay", unit: "ms", ours: b.stop, theirs: b.forkKill},
		{name: "16 MiB in short lines into a log", limit: "the same in the guest, thrown away", bound: "the guest's copy from pipe to vsock, and a record for each line", unit: "MiB/s", ours: b.writeLog, theirs: b.writeNowhere},
		{name: "`logs` of 16 MiB in short lines", limit: "`cat` of the log's files", bound: "a record for each line to be read, and a frame to be written", unit: "MiB/s", ours: b.readLog, theirs: b.catLog},
	}
}

// listRows list many containers; they come last.
func (b *bench) listRows() []row {
	return []row{
		{name: fmt.Sprintf("`ps -a` with %d containers", listed), limit: "`version`: the client's start, and an answer", bound: "the answer's size: made, sent and read", unit: "ms", ours: b.list, theirs: b.version},
	}
}

func (b *bench) runInTurn(ctx context.Context) (float64, error) {
	return millis(func() error {
		for range many {
			if err := b.do(ctx, "run", "--rm", "busybox", "true"); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) crunInTurn(ctx context.Context) (float64, error) {
	ms, err := b.crunRun(ctx)
	return ms * many, err
}

func (b *bench) start(ctx context.Context) (ms float64, err error) {
	if err := b.do(ctx, "run", "--name", "again", "busybox", "true"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.do(context.WithoutCancel(ctx), "rm", "-f", "again")) }()
	return millis(func() error { return b.do(ctx, "start", "again") })
}

func (b *bench) stop(ctx context.Context) (ms float64, err error) {
	if err := b.do(ctx, "run", "-d", "--name", "ends", "--stop-signal", "KILL", "busybox", "sleep", "1000"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.do(context.WithoutCancel(ctx), "rm", "-f", "ends")) }()
	return millis(func() error { return b.do(ctx, "stop", "ends") })
}

// forkKill times the start and the end of a process in the guest.
func (b *bench) forkKill(ctx context.Context) (float64, error) {
	return b.repeated(ctx, 50, "{ sleep 1000 & kill -9 $!; wait $!; true; } 2>/dev/null")
}

// writeLog times a container from its start to its end.
func (b *bench) writeLog(ctx context.Context) (float64, error) {
	if err := b.do(ctx, "rm", "-f", "talks"); err != nil {
		return 0, err
	}
	speed, err := rate(logSize, func() error {
		if err := b.do(ctx, "run", "-d", "--name", "talks", "busybox", "sh", "-c", logScript); err != nil {
			return err
		}
		return b.do(ctx, "wait", "talks")
	})
	return speed, err
}

func (b *bench) writeNowhere(ctx context.Context) (float64, error) {
	return rate(logSize, func() error { return b.do(ctx, "exec", "server", "sh", "-c", logScript+" >/dev/null") })
}

// readLog reads what writeLog has written, whose row is the one before.
func (b *bench) readLog(ctx context.Context) (float64, error) {
	return rate(logSize, func() error {
		out, err := b.output(ctx, "logs", "talks")
		if err == nil && len(out) != logSize {
			err = fmt.Errorf("%d bytes of a log", len(out))
		}
		return err
	})
}

func (b *bench) catLog(ctx context.Context) (float64, error) {
	id, err := b.output(ctx, "inspect", "-f", "{{.Id}}", "talks")
	if err != nil {
		return 0, err
	}
	paths, err := filepath.Glob(filepath.Join(b.home, "containers", strings.TrimSpace(string(id)), "json.log*"))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("no log of talks: %w", err)
	}
	return rate(logSize, func() error {
		for _, p := range paths {
			if _, err := os.ReadFile(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// list makes the containers when they aren't there.
func (b *bench) list(ctx context.Context) (float64, error) {
	out, err := b.output(ctx, "ps", "-aq")
	if err != nil {
		return 0, err
	}
	for range listed - strings.Count(string(out), "\n") {
		if err := b.do(ctx, "create", "--network", "none", "busybox", "true"); err != nil {
			return 0, err
		}
	}
	return millis(func() error { return b.do(ctx, "ps", "-a") })
}

func (b *bench) version(ctx context.Context) (float64, error) {
	return millis(func() error { return b.do(ctx, "version") })
}
