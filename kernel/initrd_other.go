//go:build !linux

package kernel

import (
	"errors"
	"fmt"
	"os"
)

// UnpackInitrd makes a temporary file of the initramfs as the kernel is to get
// it. It is removed by release.
func (b *Bundle) UnpackInitrd() (path string, release func(), err error) {
	f, err := os.CreateTemp("", "sampan-initrd-")
	if err != nil {
		return "", nil, fmt.Errorf("guest bundle: %w", err)
	}
	if err := errors.Join(b.unpack(f), f.Close()); err != nil {
		os.Remove(f.Name())
		return "", nil, err
	}
	return f.Name(), func() { os.Remove(f.Name()) }, nil
}
