//go:build linux

// Command mkroot makes a Debian root from packages, for the tests' images; the
// Makefile runs it, so that no test needs a network.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sampan/kernel/bundle"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mkroot:", err)
		os.Exit(1)
	}
}

func run() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	arch := flag.String("arch", "amd64", "architecture of the packages")
	out := flag.String("out", "", "directory to make")
	flag.Parse()
	if *out == "" || flag.NArg() == 0 {
		return fmt.Errorf("usage: mkroot -out DIR PACKAGE ...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return bundle.Root(ctx, bundle.Options{
		Arch: *arch, Cache: filepath.Join(cache, "sampan"), Log: os.Stderr,
	}, *out, flag.Args()...)
}
