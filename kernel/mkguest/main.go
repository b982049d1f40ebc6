//go:build linux

// Command mkguest makes the guest bundle (see kernel/bundle); `make guest`
// runs it from the source tree's root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"sampan/kernel"
	"sampan/kernel/bundle"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mkguest:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cache, err := os.UserCacheDir() // XDG_CACHE_HOME, or .cache in the home directory
	if err != nil {
		return err
	}
	o := bundle.Options{Log: os.Stderr}
	flag.StringVar(&o.Arch, "arch", runtime.GOARCH, "architecture of the guest: amd64 or arm64")
	flag.StringVar(&o.Root, "root", ".", "the source tree")
	flag.StringVar(&o.Kernel, "kernel", kernel.Stock, "its kernel: stock, which is Debian's, or tuned (see mkkernel)")
	flag.StringVar(&o.Out, "out", "dist", "where guest-ARCH is put")
	flag.StringVar(&o.Cache, "cache", filepath.Join(cache, "sampan"), "where packages are kept between builds")
	flag.StringVar(&o.Agent, "agent", "", "a program to be /init in place of the agent")
	flag.StringVar(&o.Stage2, "stage2", "", "a program to be the container runtime's stage 2 in place of sampan-stage2")
	flag.StringVar(&o.Build, "build", "", "the version that the agent tells the host")
	flag.StringVar(&o.Mirror, "mirror", "", "a Debian mirror in place of the machine's own")
	flag.StringVar(&o.Security, "security-mirror", "", "the security archive beside -mirror")
	flag.BoolVar(&o.Refresh, "refresh", false, "look for newer packages")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	start := time.Now()
	dir, err := bundle.Build(ctx, o)
	if err != nil {
		return err
	}
	b, err := kernel.Open(dir)
	if err != nil {
		return err
	}
	if err := b.Verify(); err != nil {
		return err
	}
	fmt.Printf("%s: Linux %s (%s), agent %s, compressed initramfs of %.1f MB, in %s\n", dir, b.Manifest.Kernel, b.Manifest.Flavour, b.Manifest.Agent,
		float64(b.Manifest.Files[kernel.InitrdFile].Size)/1e6, time.Since(start).Round(time.Millisecond))
	return nil
}
