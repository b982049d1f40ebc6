package bundle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Root makes dir a Debian root of packages with all that they depend on: each
// is unpacked, none is configured (no maintainer script runs, no privileges are
// needed), and everything belongs to the caller. A dir that is there already is
// left alone. Tests make images from it.
func Root(ctx context.Context, o Options, dir string, packages ...string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	// A cache of its own: everything in it is unpacked.
	a, err := o.apt(filepath.Join(o.Cache, "root", o.Arch, filepath.Base(dir)))
	if err != nil {
		return fmt.Errorf("make Debian root: %w", err)
	}
	if err := a.update(ctx); err != nil {
		return fmt.Errorf("make Debian root: %w", err)
	}
	// With an empty dpkg status apt resolves everything, from libc on.
	args := append([]string{"-c", a.conf, "-q", "-y", "--download-only", "--no-install-recommends", "install"}, packages...)
	if _, err := a.run(ctx, a.dir, "apt-get", args...); err != nil {
		return fmt.Errorf("make Debian root: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "cache", "archives", "*.deb"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := unpack(ctx, dir, debs); err != nil {
		return fmt.Errorf("make Debian root: %w", err)
	}
	return nil
}
