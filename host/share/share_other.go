//go:build !linux

package share

import (
	"fmt"
	"io"

	"sampan/vm"
)

// A Tree exports host paths to a guest. Here the hypervisor has a file server
// of its own, and a Tree refuses to export.
type Tree struct{}

// NewTree makes a Tree that exports nothing.
func NewTree(Options) *Tree { return &Tree{} }

// Server is nil: there is nothing to serve.
func (t *Tree) Server() vm.FUSEServer { return nil }

// Events are none.
func (t *Tree) Events() Events { return Events{} }

// Close has nothing to end.
func (t *Tree) Close() error { return nil }

// An Export is a host path that the guest can reach.
type Export struct{}

// Name is the export's entry in the root.
func (e *Export) Name() string { return "" }

// Close withdraws the path.
func (e *Export) Close() error { return nil }

// Export fails with vm.ErrUnsupported.
func (t *Tree) Export(hostPath string, readOnly bool) (*Export, error) {
	return nil, fmt.Errorf("export %s: %w on this system", hostPath, vm.ErrUnsupported)
}

// ReadOnlyDir fails with vm.ErrUnsupported.
func ReadOnlyDir(path string) (vm.FUSEServer, io.Closer, error) {
	return nil, nil, fmt.Errorf("serve %s: %w on this system", path, vm.ErrUnsupported)
}
