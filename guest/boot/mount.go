package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

const cgroupRoot = "/sys/fs/cgroup"

// CgroupDir holds the containers' cgroups and hands every controller down.
const CgroupDir = cgroupRoot + "/sampan"

// mount is one row of the mount table.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool // the kernel may lack the file system
}

const (
	plain  = unix.MS_NOSUID | unix.MS_NODEV
	inert  = plain | unix.MS_NOEXEC
	noexec = unix.MS_NOEXEC
)

// kernelMounts is in the order of mounting.
var kernelMounts = []mount{
	{source: "devtmpfs", target: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
	{source: "proc", target: "/proc", fstype: "proc", flags: inert},
	{source: "sysfs", target: "/sys", fstype: "sysfs", flags: inert},
	{source: "devpts", target: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | noexec, data: "mode=0620,gid=5,ptmxmode=0666"},
	{source: "shm", target: "/dev/shm", fstype: "tmpfs", flags: inert, data: "mode=1777"},
	{source: "mqueue", target: "/dev/mqueue", fstype: "mqueue", flags: inert, optional: true},
	{source: "run", target: "/run", fstype: "tmpfs", flags: plain, data: "mode=0755"},
	{source: "tmp", target: "/tmp", fstype: "tmpfs", flags: plain, data: "mode=1777"},
	{source: "cgroup", target: cgroupRoot, fstype: "cgroup2", flags: inert, data: "nsdelegate,memory_recursiveprot"},
	{source: "bpf", target: "/sys/fs/bpf", fstype: "bpf", flags: inert, data: "mode=0700", optional: true},
}

// shareMounts are the virtio-fs shares by tag. Layers are only read by the
// EROFS driver.
var shareMounts = []mount{
	{source: proto.ShareImages, target: ImagesDir, fstype: "virtiofs", flags: inert | unix.MS_RDONLY},
	{source: proto.ShareHost, target: HostDir, fstype: "virtiofs", flags: plain},
}

// ownRoot makes the initramfs a mount like any other. The kernel's first root
// has no parent mount, and pivot_root(2) refuses to leave such a root, in
// every mount namespace copied from this one. So a bind mount of it is moved
// on top of it, and becomes our root.
func ownRoot() error {
	const dir = "/run"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/etc", DataDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink(ResolvConf, "/etc/resolv.conf"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chdir("/")
}

// sealRoot makes the root read-only. Containers share nothing with it, but the
// agent's own binary is in it. The kernel refuses while anything is being
// written, were it only a file's access time: modules are still being loaded.
func sealRoot() error {
	const patience = 5 * time.Second
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NODEV, "")
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Since(begin) > patience {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
}

func mountAll(table []mount) error {
	for _, m := range table {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			if m.optional {
				continue
			}
			return err
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		switch {
		case err == nil:
		case m.optional && errors.Is(err, unix.ENODEV):
		case m.fstype == "devtmpfs" && errors.Is(err, unix.EBUSY): // CONFIG_DEVTMPFS_MOUNT
		default:
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

// linkDev makes the names in /dev that programs expect.
func linkDev() error {
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// enableControllers hands every controller of the cgroup at root down to its
// children.
func enableControllers(root string) error {
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var on []string
	for _, c := range strings.Fields(string(b)) {
		on = append(on, "+"+c)
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(strings.Join(on, " ")), 0o644); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return nil
}

// mountShares mounts the shares that the machine has.
func mountShares(log *slog.Logger) error {
	tags, err := shareTags("/sys/fs/virtiofs")
	if err != nil {
		return err
	}
	for _, m := range shareMounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if !tags[m.source] {
			log.Warn("no share " + m.source)
			continue
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount share %s: %w", m.source, err)
		}
		if err := setReadAhead("/sys/class/bdi", m.target, shareReadAhead); err != nil {
			return fmt.Errorf("share %s: %w", m.source, err)
		}
	}
	return nil
}

// shareReadAhead is in KiB: sequential reads ask the host for 1 MiB at once,
// not for the kernel's default of 128 KiB.
const shareReadAhead = 1024

// setReadAhead sets how far ahead the file system mounted at path is read; sys
// is the kernel's folder of backing devices.
func setReadAhead(sys, path string, kib int) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(filepath.Join(sys, dev, "read_ahead_kb"), fmt.Append(nil, kib), 0)
}

// shareTags lists the tags of the virtio-fs devices (Linux 6.9 and newer).
func shareTags(dir string) (map[string]bool, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "tag"))
	if err != nil {
		return nil, err
	}
	tags := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		tags[strings.TrimSuffix(string(b), "\n")] = true
	}
	return tags, nil
}
