//go:build linux

// Command mkkernel builds the guest's tuned kernel (see kernel/bundle), unless
// the cache has it; `make kernel` runs it from the source tree's root.
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

	"sampan/kernel/bundle"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mkkernel:", err)
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
	work := ""
	flag.StringVar(&o.Arch, "arch", runtime.GOARCH, "architecture of the guest")
	flag.StringVar(&o.Root, "root", ".", "the source tree")
	flag.StringVar(&o.Cache, "cache", filepath.Join(cache, "sampan"), "where kernels are kept")
	flag.StringVar(&work, "work", "", "where source and objects are kept, to build a changed configuration quickly; default: nowhere")
	flag.StringVar(&o.Mirror, "mirror", "", "a Debian mirror in place of the machine's own")
	flag.StringVar(&o.Security, "security-mirror", "", "the security archive beside -mirror")
	flag.BoolVar(&o.Refresh, "refresh", false, "look for a newer source package")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if work != "" {
		if work, err = filepath.Abs(work); err != nil {
			return err
		}
	}
	start := time.Now()
	release, err := bundle.Kernel(ctx, o, work)
	if err != nil {
		return err
	}
	fmt.Printf("Linux %s for %s, in %s\n", release, o.Arch, time.Since(start).Round(time.Second))
	return nil
}
