package kernel

import (
	"fmt"
	"os"
)

// Hold opens the bundle's files and makes Kernel and PackedInitrd name the open
// files, whatever becomes of the bundle's directory, until Release. The names
// are good for this process and its children.
func (b *Bundle) Hold() error {
	for _, path := range []*string{&b.Kernel, &b.PackedInitrd} {
		f, err := os.Open(*path)
		if err != nil {
			b.Release()
			return fmt.Errorf("guest bundle: %w", err)
		}
		// Kept by the Bundle: an unreachable file is closed by its finalizer.
		b.held = append(b.held, f)
		*path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}
	return nil
}
