package main

import (
	"log/slog"
	"os"

	"sampan/vm"
	"sampan/vm/vz"
)

func newDriver(cfg config, log *slog.Logger) vm.Driver {
	return &vz.Driver{Log: log}
}

// hostDirs are the roots that Virtualization.framework shares, fixed at boot.
func hostDirs() map[string]string {
	dirs := map[string]string{"private": "/private", "Volumes": "/Volumes"}
	if user, err := os.UserHomeDir(); err == nil {
		dirs["home"] = user
	}
	return dirs
}
