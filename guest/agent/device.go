package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/proto"
)

// ownDirs of /dev have what each container has of its own.
var ownDirs = []string{"pts", "shm", "fd", "mqueue"}

// addDevices gives a container the guest's devices that the request names.
func addDevices(spec *specs.Spec, req *proto.StartRequest) error {
	if req.AllDevices {
		all, err := devicesBelow("/dev", "/dev")
		if err != nil {
			return failed("devices", err)
		}
		spec.Linux.Devices = append(spec.Linux.Devices, all...)
	}
	for _, d := range req.Devices {
		found, err := devicesBelow(d.Path, d.Target)
		if errno := unix.Errno(0); errors.As(err, &errno) {
			err = errno // as Docker has it
		}
		if err != nil {
			return errorf(codes.FailedPrecondition, "error gathering device information while adding custom device %q: %v", d.Path, err)
		}
		if len(found) == 0 {
			return errorf(codes.FailedPrecondition, "error gathering device information while adding custom device %q: not a device node", d.Path)
		}
		if spec.Linux.Resources == nil {
			spec.Linux.Resources = &specs.LinuxResources{}
		}
		for _, node := range found {
			spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: d.Permissions,
			})
		}
		spec.Linux.Devices = append(spec.Linux.Devices, found...)
	}
	return nil
}

// devicesBelow describes the device at path in the guest, or all in the
// directory there, as they are to be at target.
func devicesBelow(path, target string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && p != real: // gone meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir() && p != real && slices.Contains(ownDirs, d.Name()):
			return filepath.SkipDir
		case d.IsDir(), p == "/dev/console", p == "/dev/ptmx": // a container has its own
			return nil
		}
		node, ok, err := device(p)
		if ok {
			node.Path = filepath.Join(target, p[len(real):])
			out = append(out, node)
		}
		return err
	})
	return out, err
}

// device describes a device node; ok says that it is one.
func device(path string) (d specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return d, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	mode := os.FileMode(st.Mode & 0o777)
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	d.FileMode, d.UID, d.GID = &mode, &st.Uid, &st.Gid
	return d, true, nil
}
