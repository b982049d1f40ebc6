package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// crun makes a bundle of /specs/NAME.json, with this program for a root, and
// becomes the crun that runs it.
func crun(name string) error {
	text, err := os.ReadFile("/specs/" + name + ".json")
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	dir := filepath.Join("/bundle", name)
	if err := os.RemoveAll(dir); err != nil { // of a try before
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return err
	}
	if err := os.Link("/probe", filepath.Join(dir, "rootfs", "probe")); err != nil {
		return err
	}
	if strings.HasPrefix(name, "privileged") {
		if spec.Linux.Devices, err = machineDevices(); err != nil {
			return err
		}
	}
	if name == "ipc-shareable" { // dockerd mounts it
		if err := os.MkdirAll("/files/shm", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("shm", "/files/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=65536k"); err != nil {
			return err
		}
	}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return err
	}
	return unix.Exec("/usr/bin/crun", []string{"crun", "run", "-b", dir, name}, os.Environ())
}

// machineDevices is every device of this machine, as dockerd lists them for
// --privileged.
func machineDevices() ([]specs.LinuxDevice, error) {
	const dir = "/files/dev"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("dev", dir, "devtmpfs", 0, ""); err != nil {
		return nil, err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	skip := regexp.MustCompile(`^/dev/(pts|shm|fd|mqueue|\.lxc|\.lxd-mounts|\.udev|console)$`)
	var list []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name := "/dev" + strings.TrimPrefix(path, dir)
		if err != nil || skip.MatchString(name) {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
		if kind == "" {
			return nil
		}
		mode := os.FileMode(st.Mode & 0o777)
		list = append(list, specs.LinuxDevice{
			Path: name, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		return nil
	})
	return list, err
}
