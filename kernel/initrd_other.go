//go:build !linux

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// UnpackInitrd makes a file of the initramfs as the kernel is to get it, in the
// user's cache. It stays there after release, until the next is made: a
// hypervisor may read it again when the guest resets itself. It has its content at
// once; ready has nothing to wait for.
func (b *Bundle) UnpackInitrd() (path string, ready func() error, release func(), err error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", nil, nil, fmt.Errorf("guest bundle: %w", err)
	}
	dir = filepath.Join(dir, "sampan")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, nil, fmt.Errorf("guest bundle: %w", err)
	}
	f, err := os.CreateTemp(dir, ".initrd-")
	if err != nil {
		return "", nil, nil, fmt.Errorf("guest bundle: %w", err)
	}
	path = filepath.Join(dir, "initrd")
	if err := errors.Join(b.unpack(f), f.Close()); err != nil {
		os.Remove(f.Name())
		return "", nil, nil, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return "", nil, nil, fmt.Errorf("guest bundle: %w", err)
	}
	return path, func() error { return nil }, func() {}, nil
}
