package main

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"sampan/kernel"
)

// guest is the bundle of this daemon. It is opened once, by the first boot: a
// bundle that is replaced under a running daemon is not looked at.
type guest struct {
	log *slog.Logger

	mu     sync.Mutex
	bundle *kernel.Bundle
}

// files verifies the bundle and names its kernel, and its initramfs unpacked,
// which is there until release.
func (g *guest) files() (kernelFile, initrd string, release func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := g.verified()
	if err != nil {
		return "", "", nil, err
	}
	initrd, release, err = b.UnpackInitrd()
	return b.Kernel, initrd, release, err
}

// verified is the bundle, with its files as the manifest says.
func (g *guest) verified() (*kernel.Bundle, error) {
	if g.bundle != nil {
		return g.bundle, g.bundle.Verify()
	}
	dir, err := kernel.Find()
	if err != nil {
		return nil, err
	}
	b, err := kernel.Open(dir)
	if err != nil {
		return nil, err
	}
	if b.Manifest.Arch != runtime.GOARCH {
		return nil, fmt.Errorf("the guest bundle in %s is for %s, this machine is %s: run `make guest`", dir, b.Manifest.Arch, runtime.GOARCH)
	}
	if err := b.Hold(); err != nil {
		return nil, err
	}
	if err := b.Verify(); err != nil {
		b.Release() // the next boot looks again
		return nil, err
	}
	g.log.Info("guest bundle", "dir", dir, "kernel", b.Manifest.Kernel, "agent", b.Manifest.Agent)
	g.bundle = b
	return b, nil
}
