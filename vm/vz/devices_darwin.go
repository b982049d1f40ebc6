package vz

import (
	"fmt"
	"os"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"

	"sampan/vm"
)

// handles are files that the framework uses but does not own. Close them when
// the machine has ended.
type handles struct {
	files       []*os.File
	consoleRead *os.File // our end of the console
}

func (h *handles) close() {
	for _, f := range h.files {
		f.Close()
	}
	h.files = nil
}

// addBasics adds what every machine has: vsock, entropy, a memory balloon.
func addBasics(_ vm.Config, _ *handles, config *vz.VirtualMachineConfiguration) error {
	vsock, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	config.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{vsock})
	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return fmt.Errorf("entropy: %w", err)
	}
	config.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})
	balloon, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	config.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{balloon})
	return nil
}

// addConsole makes the guest's hvc0 a pipe to h.consoleRead.
func addConsole(_ vm.Config, h *handles, config *vz.VirtualMachineConfiguration) error {
	null, err := os.Open(os.DevNull) // the guest has nothing to read
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	h.files = append(h.files, null)
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	h.files, h.consoleRead = append(h.files, w), r
	attachment, err := vz.NewFileHandleSerialPortAttachment(null, w)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(attachment)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	config.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
	return nil
}

// addDisks attaches raw files. The guest's flush becomes F_FULLFSYNC: plain
// fsync on macOS leaves data in the drive's cache.
func addDisks(cfg vm.Config, _ *handles, config *vz.VirtualMachineConfiguration) error {
	var disks []vz.StorageDeviceConfiguration
	for _, d := range cfg.Disks {
		attachment, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(d.Path, d.ReadOnly,
			vz.DiskImageCachingModeCached, vz.DiskImageSynchronizationModeFull)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Path, err)
		}
		disk, err := vz.NewVirtioBlockDeviceConfiguration(attachment)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Path, err)
		}
		if err := disk.SetBlockDeviceIdentifier(d.Serial); err != nil {
			return fmt.Errorf("disk %s: serial %q: %w", d.Path, d.Serial, err)
		}
		disks = append(disks, disk)
	}
	config.SetStorageDevicesVirtualMachineConfiguration(disks)
	return nil
}

// addShares attaches virtio-fs devices, served by the framework.
func addShares(cfg vm.Config, _ *handles, config *vz.VirtualMachineConfiguration) error {
	var shares []vz.DirectorySharingDeviceConfiguration
	for _, s := range cfg.Shares {
		device, err := vz.NewVirtioFileSystemDeviceConfiguration(s.Tag)
		if err != nil {
			return fmt.Errorf("share %q: %w", s.Tag, err)
		}
		dirs, err := directoryShare(s)
		if err != nil {
			return fmt.Errorf("share %q: %w", s.Tag, err)
		}
		device.SetDirectoryShare(dirs)
		shares = append(shares, device)
	}
	config.SetDirectorySharingDevicesVirtualMachineConfiguration(shares)
	return nil
}

// directoryShare is one directory as the root, or several under their names.
func directoryShare(s vm.Share) (vz.DirectoryShare, error) {
	if len(s.Dirs) == 0 {
		return nil, fmt.Errorf("no directories; a file server of one's own: %w", vm.ErrUnsupported)
	}
	dirs := map[string]*vz.SharedDirectory{}
	for name, path := range s.Dirs {
		dir, err := vz.NewSharedDirectory(path, s.ReadOnly)
		if err != nil {
			return nil, fmt.Errorf("directory %s: %w", path, err)
		}
		dirs[name] = dir
	}
	root, single := dirs[""]
	switch {
	case single && len(dirs) > 1:
		return nil, fmt.Errorf("a root and named directories in one share: %w", vm.ErrUnsupported)
	case single:
		return vz.NewSingleDirectoryShare(root)
	}
	return vz.NewMultipleDirectoryShare(dirs)
}

// addNIC attaches a network card to a duplicate of the caller's socket.
func addNIC(cfg vm.Config, h *handles, config *vz.VirtualMachineConfiguration) error {
	if cfg.NIC == nil {
		return nil
	}
	fd, err := unix.FcntlInt(cfg.NIC.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network: duplicate socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "network")
	h.files = append(h.files, file)
	attachment, err := vz.NewFileHandleNetworkDeviceAttachment(file)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	nic, err := vz.NewVirtioNetworkDeviceConfiguration(attachment)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	mac, err := vz.NewMACAddress(cfg.NIC.MAC)
	if err != nil {
		return fmt.Errorf("network: address %s: %w", cfg.NIC.MAC, err)
	}
	nic.SetMACAddress(mac)
	config.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{nic})
	return nil
}
