package vz

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/Code-Hex/vz/v3"

	"sampan/vm"
)

// Driver boots machines with Virtualization.framework. The zero value is
// ready.
type Driver struct {
	// Log is for what people may want to know. Optional.
	Log *slog.Logger
}

// kernelLimit is how long the console may stay silent. A kernel needs less
// than a second.
const kernelLimit = 15 * time.Second

// Boot implements vm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	begin := time.Now()
	fail := func(stage string, err error) error {
		return &vm.BootError{Stage: stage, After: time.Since(begin), Err: err}
	}
	if err := cfg.Validate(); err != nil {
		return nil, fail("process", err)
	}
	m, err := newMachine(cfg, d.logger(cfg))
	if err != nil {
		return nil, fail("process", err)
	}
	if err := m.start(ctx); err != nil {
		m.abandon()
		return nil, fail("process", err)
	}
	reached(cfg, "process")

	silence := time.NewTimer(kernelLimit)
	defer silence.Stop()
	select {
	case <-m.console.first:
		reached(cfg, "kernel")
		return m, nil
	case <-m.ended:
		err = fmt.Errorf("the machine ended: %v", m.vm.State())
	case <-silence.C:
		err = fmt.Errorf("the console stayed silent for %s", kernelLimit)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	m.abandon()
	be := &vm.BootError{Stage: "kernel", After: time.Since(begin), Console: m.console.text(), Err: err}
	return nil, be
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

func reached(cfg vm.Config, stage string) {
	if cfg.Stage != nil {
		cfg.Stage(stage)
	}
}

// configuration is cfg in the framework's terms. h takes the files that must
// stay open.
func configuration(cfg vm.Config, h *handles) (*vz.VirtualMachineConfiguration, error) {
	cmdline := "console=hvc0 panic=-1 loglevel=6 cryptomgr.notests"
	if cfg.Cmdline != "" {
		cmdline += " " + cfg.Cmdline
	}
	if cfg.Ready != nil { // the framework wants whole files
		if err := cfg.Ready(); err != nil {
			return nil, err
		}
	}
	loader, err := vz.NewLinuxBootLoader(cfg.Kernel, vz.WithCommandLine(cmdline), vz.WithInitrd(cfg.Initrd))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	config, err := vz.NewVirtualMachineConfiguration(loader, uint(cfg.CPUs), uint64(cfg.Memory))
	if err != nil {
		return nil, err
	}
	for _, add := range []func(vm.Config, *handles, *vz.VirtualMachineConfiguration) error{
		addBasics, addConsole, addDisks, addShares, addNIC,
	} {
		if err := add(cfg, h, config); err != nil {
			return nil, err
		}
	}
	if ok, err := config.Validate(); err != nil {
		return nil, fmt.Errorf("validate: %w", err)
	} else if !ok {
		return nil, fmt.Errorf("validate: %w", vm.ErrUnsupported)
	}
	return config, nil
}
