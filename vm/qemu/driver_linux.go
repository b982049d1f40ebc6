package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"sampan/vm"
)

// Driver boots machines with QEMU 7.2 or newer. The zero value is ready.
type Driver struct {
	// Binary is QEMU's program. Optional: found in PATH by the architecture's
	// usual name.
	Binary string
	// Arch is the guest's architecture as Go names it. Optional: the host's.
	// A foreign one runs under TCG.
	Arch string
	// Accel is "auto" (the default), "kvm" or "tcg".
	Accel string // optional
	// Log is for what people may want to know. Optional.
	Log *slog.Logger
	// Extra are arguments for QEMU behind all others: a benchmark's other
	// devices. Optional.
	Extra []string

	// How long the stages may take; zero for the defaults. For tests.
	processLimit, kernelLimit time.Duration
}

const (
	processLimit = 20 * time.Second
	// A kernel says its first word within a second, translated on a busy
	// machine within ten.
	kernelLimitKVM = 10 * time.Second
	kernelLimitTCG = 60 * time.Second
)

// Boot implements vm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	begin := time.Now()
	path, b, pick, err := d.plan(cfg)
	if err != nil {
		return nil, &vm.BootError{Stage: "process", Err: err}
	}
	cfg.Stage = once(cfg.Stage)
	m, err := d.bootTwice(ctx, cfg, path, b, pick)
	var be *vm.BootError
	if errors.As(err, &be) {
		be.After = time.Since(begin)
	}
	if err != nil {
		return nil, err
	}
	d.logger(cfg).Debug("machine booted", "how", m.describe, "after", time.Since(begin))
	return m, nil
}

// bootTwice boots, and once more under TCG where pick allows it.
func (d *Driver) bootTwice(ctx context.Context, cfg vm.Config, path string, b board, pick choice) (*machine, error) {
	m, err := d.attempt(ctx, cfg, path, b, pick)
	if _, notReady := errors.AsType[*notReadyError](err); err == nil || !pick.fallback || notReady || ctx.Err() != nil {
		return m, err
	}
	d.logger(cfg).Warn("boot under KVM failed; trying without", "err", err)
	return d.attempt(ctx, cfg, path, b, choice{accelerator: tcg, reason: "a boot under KVM failed"})
}

func (d *Driver) logger(cfg vm.Config) *slog.Logger {
	switch {
	case cfg.Log != nil:
		return cfg.Log
	case d.Log != nil:
		return d.Log
	}
	return slog.New(slog.DiscardHandler)
}

// plan decides what to run.
func (d *Driver) plan(cfg vm.Config) (path string, b board, pick choice, err error) {
	if err := cfg.Validate(); err != nil {
		return "", board{}, choice{}, err
	}
	arch := cmp.Or(d.Arch, runtime.GOARCH)
	b, ok := boards()[arch]
	if !ok {
		return "", board{}, choice{}, fmt.Errorf("machines of architecture %s: %w", arch, vm.ErrUnsupported)
	}
	if pick, err = choose(d.Accel, arch, hostFacts()); err != nil {
		return "", board{}, choice{}, err
	}
	if path = d.Binary; path == "" {
		path = b.binary
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return "", board{}, choice{}, fmt.Errorf("QEMU is not installed (no %s in PATH): apt install %s", path, b.pkg)
	}
	return found, b, pick, nil
}

// hostFacts looks at the host.
func hostFacts() facts {
	f := facts{arch: runtime.GOARCH}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		dev.Close()
	}
	f.kvm = err
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		f.cpuinfo = string(info)
	}
	return f
}

// once makes a stage callback that passes each name on a single time, however
// often a boot is tried, and from whichever goroutine.
func once(stage func(string)) func(string) {
	var mu sync.Mutex
	seen := map[string]bool{}
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if stage != nil && !seen[name] {
			seen[name] = true
			stage(name)
		}
	}
}
