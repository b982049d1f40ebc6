package stage2

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sampan/guest/symlink"
)

// readOnlyLast tells whether the mount becomes read-only only after everything
// has been made in it.
func (m Mount) readOnlyLast() bool {
	return m.Type == "tmpfs" && m.Set&unix.MOUNT_ATTR_RDONLY != 0
}

// attach mounts m in the container.
func (m Mount) attach() error {
	isDir := true
	fd := m.FD
	set := m.Set
	if m.readOnlyLast() {
		set &^= unix.MOUNT_ATTR_RDONLY
	}
	if m.Type != "" {
		var err error
		if fd, err = newMount(m.Type, m.Source, m.Options, set); err != nil {
			return err
		}
		defer unix.Close(fd)
	} else {
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		if err := setAttr(fd, set, m.Clear, 0, 0); err != nil {
			return err
		}
	}
	target, err := makeTarget(m.Dest, isDir)
	if err != nil {
		return m.wrongKind(err)
	}
	defer unix.Close(target)
	if err := unix.MoveMount(fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return m.wrongKind(err)
	}
	return m.finish(fd)
}

// attachProc mounts a procfs of another pid namespace. A procfs is of the
// namespace that its mounter is in, not of the one whose processes it makes: so
// a fork mounts it, which is there for these few system calls.
func (m Mount) attachProc(pidNS int) error {
	target, err := makeTarget(m.Dest, true)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var words [4]*byte
	for i, word := range []string{"proc", ".", "proc", strings.Join(m.Options, ",")} {
		if words[i], err = syscall.BytePtrFromString(word); err != nil {
			return err
		}
	}
	pr := &program{}
	pr.add("enter the mount point", unix.SYS_FCHDIR, uintptr(target))
	pr.add("close descriptors", unix.SYS_CLOSE_RANGE, reportFD+1, uintptr(^uint32(0)), 0)
	pr.add("mount", unix.SYS_MOUNT, addr(pr, words[0]), addr(pr, words[1]), addr(pr, words[2]), 0, addr(pr, words[3]))
	pr.add("end", unix.SYS_EXIT_GROUP, 0)
	if err := pr.carryOut(pidNS); err != nil {
		return err
	}
	fd, err := openInRoot(m.Dest)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, m.Set, m.Clear, 0, 0); err != nil {
		return err
	}
	return m.finish(fd)
}

// finish sets what the table says of the whole tree.
func (m Mount) finish(fd int) error {
	if err := setAttr(fd, m.RecSet, m.RecClear, 0, unix.AT_RECURSIVE); err != nil {
		return err
	}
	var tree uint
	if m.PropRec {
		tree = unix.AT_RECURSIVE
	}
	return setAttr(fd, 0, 0, m.Propagation, tree)
}

// wrongKind adds runc's hint to what the kernel says about a file mounted on a
// directory, or the other way round.
func (m Mount) wrongKind(err error) error {
	if m.Type == "" && (errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EINVAL)) {
		return fmt.Errorf("%w: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type", err)
	}
	return err
}

// setAttr changes the attributes of the mount at fd.
func setAttr(fd int, set, clear, propagation uint64, tree uint) error {
	if set|clear|propagation == 0 {
		return nil
	}
	if (set|clear)&unix.MOUNT_ATTR__ATIME != 0 {
		clear |= unix.MOUNT_ATTR__ATIME // a field, not bits: the kernel wants it cleared first
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|tree, &attr); err != nil {
		return fmt.Errorf("set attributes %#x, clear %#x, propagation %#x: %w", set, clear, propagation, err)
	}
	return nil
}

// newMount is a new, detached file system.
func newMount(fstype, source string, options []string, attr uint64) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %q: %w", fstype, err)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, fmt.Errorf("source %q: %w", source, fsError(fs, err))
		}
	}
	for _, o := range options {
		key, value, found := strings.Cut(o, "=")
		if found {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("%s option %q: %w", fstype, o, fsError(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make %s: %w", fstype, fsError(fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, fsError(fs, err))
	}
	return fd, nil
}

// fsError adds what the kernel says about a failed fsconfig.
func fsError(fs int, err error) error {
	buf := make([]byte, 512)
	n, readErr := unix.Read(fs, buf)
	if readErr != nil || n <= 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
}

// makeTarget opens where something is to be mounted, and makes it if needed.
func makeTarget(dest string, dir bool) (int, error) {
	name, err := symlink.Follow(dest, os.Readlink)
	if err != nil {
		return -1, err
	}
	parent := name
	if !dir {
		parent = path.Dir(name)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return -1, err
	}
	if !dir {
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o755)
		switch {
		case err == nil:
			unix.Close(fd)
		case !errors.Is(err, unix.EEXIST):
			return -1, &os.PathError{Op: "create", Path: name, Err: err}
		}
	}
	return openInRoot(name)
}

// openInRoot opens a path whose links are resolved here, so that nobody can
// put one in meanwhile: a volume may be shared with a running container.
func openInRoot(dest string) (int, error) {
	name, err := symlink.Follow(dest, os.Readlink)
	if err != nil {
		return -1, err
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}
