package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"sampan/host/machine"
	"sampan/kernel"
)

// guest is the bundle of this daemon. It is opened once, by the first boot: a
// bundle that is replaced under a running daemon is not looked at.
type guest struct {
	log *slog.Logger

	mu     sync.Mutex
	bundle *kernel.Bundle
}

// files are the bundle's kernel and its initramfs, which is still being unpacked;
// both are still being verified.
func (g *guest) files() (*machine.Files, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, err := g.open()
	if err != nil {
		return nil, err
	}
	verified := make(chan struct{})
	var invalid error
	go func() {
		defer close(verified)
		invalid = b.Verify()
	}()
	initrd, unpacked, release, err := b.UnpackInitrd()
	if err != nil {
		<-verified
		return nil, g.forgetLocked(b, cmp.Or(invalid, err)) // invalid explains the other
	}
	return &machine.Files{
		Kernel: b.Kernel, Initrd: initrd,
		Ready: func() error {
			err := unpacked()
			<-verified
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.forgetLocked(b, cmp.Or(invalid, err))
		},
		Release: func() { <-verified; release() },
	}, nil
}

// forgetLocked has the next boot look for a bundle again after an error of this
// one, which it returns.
func (g *guest) forgetLocked(b *kernel.Bundle, err error) error {
	if err != nil && g.bundle == b {
		b.Release()
		g.bundle = nil
	}
	return err
}

// open is the bundle, whose files are held on to.
func (g *guest) open() (*kernel.Bundle, error) {
	if g.bundle != nil {
		return g.bundle, nil
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
	g.log.Info("guest bundle", "dir", dir, "kernel", b.Manifest.Kernel, "agent", b.Manifest.Agent)
	g.bundle = b
	return b, nil
}
