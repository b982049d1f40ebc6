package main

import (
	"log/slog"

	"sampan/vm"
	"sampan/vm/qemu"
)

func newDriver(cfg config, log *slog.Logger) vm.Driver {
	return &qemu.Driver{Accel: cfg.Machine.Accelerator, Log: log}
}

// hostDirs is for drivers whose hypervisor serves files by itself.
func hostDirs() map[string]string { return nil }
