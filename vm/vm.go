// Package vm runs lightweight Linux virtual machines.
//
// A Driver boots a Machine from a Config; the Machine is reached by vsock, and
// by nothing else. The package knows nothing of what runs inside.
//
// Drivers: vm/qemu (Linux), vm/vz (macOS), vm/fake (goroutines, for tests).
// Each passes the conformance suite of vm/vmtest.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A Driver boots machines.
type Driver interface {
	// Boot starts a machine and returns when its kernel runs. Cancelling ctx
	// ends the boot, and has no effect once Boot has returned. A failure is a
	// *BootError.
	Boot(ctx context.Context, cfg Config) (Machine, error)
}

// A Machine is a running virtual machine. Its methods may be called from
// several goroutines; after the machine has ended they fail at once.
type Machine interface {
	// Dial connects to a vsock port of the guest. The connection has
	// CloseWrite, as a *net.TCPConn does.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Listen accepts connections that the guest opens to the host (CID 2).
	Listen(port uint32) (net.Listener, error)
	// Wait returns when the machine has ended: nil when it turned itself off
	// or Stop ended it, else why.
	Wait() error
	// Stop ends the machine at once, as pulling the plug does (an ordered
	// power-off is asked of the guest, not of the machine), and returns when
	// nothing of it is left. Idempotent.
	Stop(ctx context.Context) error
}

// Describer is a Machine that tells how it runs.
type Describer interface {
	// Describe is one line for people, e.g. "QEMU 7.2.0, TCG (no vmx or svm)".
	Describe() string
}

// Processer is a Machine that is a process of the host.
type Processer interface {
	// Pid of the hypervisor.
	Pid() int
}

// Meter is a Machine whose hypervisor's use of the host is counted.
type Meter interface {
	// Usage fails when the machine has ended.
	Usage() (Usage, error)
}

// Usage is what a hypervisor has used of its host up to now, in all threads.
type Usage struct {
	// CPU is processor time: the guest's, and the hypervisor's own.
	CPU time.Duration `json:"cpu"`
	// Memory is what is resident of it, the guest's included, in bytes.
	Memory  int64 `json:"memory"`
	Threads int   `json:"threads"`
	// Storage is absent where the host doesn't tell.
	Storage *Storage `json:"storage,omitempty"`
}

// Storage is what passed between a process and the host's disks, in bytes;
// what the host's page cache answers is not in it.
type Storage struct {
	Read    int64 `json:"read"`
	Written int64 `json:"written"`
}

// ErrUnsupported is wrapped by errors about what a driver or system can't do.
var ErrUnsupported = errors.New("not supported")

// Config describes a machine to boot.
type Config struct {
	// Kernel, Initrd: files, which are read until the guest's kernel runs. Required.
	Kernel, Initrd string
	// Ready returns when Initrd, whose size is right from the beginning, has its
	// content, and both files are good to boot: the guest does not run before.
	// Hypervisor and files get ready side by side. An error ends the boot.
	// Optional.
	Ready func() error
	// Cmdline is the kernel's command line; the driver adds the console.
	Cmdline string // optional
	// CPUs of the guest, at least 1. Required.
	CPUs int
	// Memory of the guest in bytes, a multiple of 1 MiB. Required.
	Memory int64
	// Disks are virtio-blk devices, in order. Optional.
	Disks []Disk
	// Shares are virtio-fs devices. Optional.
	Shares []Share
	// NIC is the network card. Optional.
	NIC *NIC
	// Console receives what the guest prints. Optional.
	Console io.Writer
	// Stage is called when a stage of the boot is reached, with its name:
	// "process" (the hypervisor runs), "devices" (it is connected to every
	// device of ours, if it has such), "kernel" (the console's first byte).
	// It must return at once; calls come one at a time, from any goroutine, and
	// the order of the first two is not fixed. Optional.
	Stage func(name string)
	// Log is for what people may want to know. Optional.
	Log *slog.Logger
}

// Disk is a raw file that the guest sees as a block device.
type Disk struct {
	Path     string // required
	ReadOnly bool
	// Serial names the device in the guest, at most 20 bytes. Required.
	Serial string
}

// Share is a file system that the guest mounts by its tag.
type Share struct {
	// Tag names the share in the guest, 1 to 36 bytes (virtio 1.2, 5.11.4).
	Tag string // required
	// ReadOnly is enforced on the host.
	ReadOnly bool
	// Dirs are the host directories in the share, each under its own name, for
	// a hypervisor with a file server of its own (Virtualization.framework).
	// One directory under the empty name is the share's root.
	Dirs map[string]string
	// Server answers the guest's FUSE requests, for a driver that carries
	// them itself (QEMU).
	Server FUSEServer
}

// FUSEServer is the protocol side of a file system; go-fuse's
// *fuse.ProtocolServer is one. in and out are memory of the guest; the result
// is how many bytes of out were filled.
type FUSEServer interface {
	HandleRequest(in, out [][]byte) (int, fuse.Status)
}

// NIC is a virtio-net card.
type NIC struct {
	MAC net.HardwareAddr // required
	// File is one end of a connected pair of UNIX datagram sockets; a datagram
	// is an Ethernet frame. The driver closes its copy when the machine ends;
	// the caller closes this one after Boot has returned. Required.
	File *os.File
}

// Validate says what is missing from or wrong with cfg.
func (cfg Config) Validate() error {
	switch {
	case cfg.Kernel == "":
		return errors.New("no kernel")
	case cfg.Initrd == "":
		return errors.New("no initrd")
	case cfg.CPUs < 1:
		return fmt.Errorf("%d CPUs: want at least 1", cfg.CPUs)
	case cfg.Memory < 64<<20 || cfg.Memory%(1<<20) != 0:
		return fmt.Errorf("memory of %d bytes: want a multiple of 1 MiB, at least 64 MiB", cfg.Memory)
	}
	for _, d := range cfg.Disks {
		if d.Path == "" || d.Serial == "" || len(d.Serial) > 20 {
			return fmt.Errorf("disk %q with serial %q: want a path and a serial of 1 to 20 bytes", d.Path, d.Serial)
		}
	}
	tags := map[string]bool{}
	for _, s := range cfg.Shares {
		if s.Tag == "" || len(s.Tag) > 36 || tags[s.Tag] {
			return fmt.Errorf("share tag %q: want 1 to 36 bytes, each tag once", s.Tag)
		}
		tags[s.Tag] = true
	}
	if cfg.NIC != nil && (len(cfg.NIC.MAC) != 6 || cfg.NIC.File == nil) {
		return errors.New("network card: want a MAC address of 6 bytes and a socket")
	}
	return nil
}

// BootError says how far a boot came. Its text includes the console's tail.
type BootError struct {
	// Stage that was not reached, e.g. "kernel".
	Stage string
	// After is how long the boot had been going on.
	After time.Duration
	// Console is the end of what the guest printed; may be empty.
	Console string
	Err     error
}

func (e *BootError) Error() string {
	msg := fmt.Sprintf("boot: %v (stage %q not reached after %s)", e.Err, e.Stage, e.After.Round(time.Millisecond))
	if e.Console != "" {
		msg += "\nthe console's last lines:\n" + e.Console
	}
	return msg
}

func (e *BootError) Unwrap() error { return e.Err }
