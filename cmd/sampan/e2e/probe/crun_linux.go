package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	if hasSharedMemory(&spec) && os.Mkdir("/files/shm", 0o755) == nil { // dockerd mounts it
		if err := unix.Mount("shm", "/files/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=65536k"); err != nil {
			return err
		}
	}
	if err := joinOwner(&spec); err != nil {
		return err
	}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return err
	}
	return unix.Exec("/usr/bin/crun", []string{"crun", "run", "-b", dir, name}, os.Environ())
}

func hasSharedMemory(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Source == "/files/shm" })
}

// owner is the container whose namespaces others join.
const owner = "owner"

// joinOwner puts the owner into the paths of namespaces, and runs it where it
// does not run yet.
func joinOwner(spec *specs.Spec) error {
	pid := ""
	for i, ns := range spec.Linux.Namespaces {
		if ns.Path == "" {
			continue
		}
		if pid == "" {
			var err error
			if pid, err = ownerPID(); err != nil {
				return err
			}
		}
		spec.Linux.Namespaces[i].Path = strings.Replace(ns.Path, "OWNER", pid, 1)
	}
	return nil
}

func ownerPID() (string, error) {
	const file = "/bundle/owner.pid"
	if pid, err := os.ReadFile(file); err == nil {
		return string(pid), nil
	}
	text, err := os.ReadFile("/specs/default.json")
	if err != nil {
		return "", err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return "", err
	}
	spec.Process.Args = []string{"/probe", "sleep"}
	spec.Linux.CgroupsPath = "/docker/" + owner
	dir := filepath.Join("/bundle", owner)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return "", err
	}
	if err := os.Link("/probe", filepath.Join(dir, "rootfs", "probe")); err != nil {
		return "", err
	}
	if text, err = json.Marshal(spec); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return "", err
	}
	// Its streams are /dev/null: what runs this waits for the end of its own.
	if err := exec.Command("/usr/bin/crun", "run", "-d", "-b", dir, "--pid-file", file, owner).Run(); err != nil {
		return "", fmt.Errorf("run the owner: %w", err)
	}
	pid, err := os.ReadFile(file)
	return string(pid), err
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
