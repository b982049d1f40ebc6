package stage2

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// enterRoot makes the container's root this process's, and mounts what the
// table says. It returns a procfs of the container that nothing in the image
// can have covered.
//
// What comes from the outside (the root, the sources of binds) comes as
// descriptors; everything happens after the pivot, where no symbolic link of
// the image leads out.
//
// pidNS is the pid namespace that the container shares with another, 0 when
// it's this process's.
func enterRoot(root *Root, pidNS int) (proc int, err error) {
	if err := private(); err != nil {
		return -1, err
	}
	if err := pivot(root); err != nil {
		return -1, err
	}
	for _, m := range root.Mounts {
		if m.Type == "proc" && pidNS != 0 {
			err = m.attachProc(pidNS)
		} else {
			err = m.attach()
		}
		if err != nil {
			return -1, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	if err := makeDevices(root); err != nil {
		return -1, err
	}
	// Not before the table: it is of this process's pid namespace, and what
	// attachProc forks has everything that is open.
	return newMount("proc", "proc", nil, 0)
}

// leave lets go of mounts of the agent, by where they are, in this process's
// own mount namespace: one in reserve must not keep those of containers alive.
func leave(mounts []string) error {
	if len(mounts) == 0 {
		return nil
	}
	if err := private(); err != nil {
		return err
	}
	for _, dir := range mounts {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // it need not be there
			return fmt.Errorf("let go of %s: %w", dir, err)
		}
	}
	return nil
}

// private stops mounts from spreading, either way.
func private() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("stop mounts from spreading: %w", err)
	}
	return nil
}

// pivot swaps the roots, and lets go of the agent's.
func pivot(root *Root) error {
	fd := root.FD
	defer unix.Close(fd)
	const place = "/proc" // any directory of the agent's root; it goes with that
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to root: %w", err)
	}
	// The working directory is now the old root, stacked over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the agent's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter new root: %w", err)
	}
	propagation := root.Propagation
	if propagation == 0 {
		propagation = unix.MS_PRIVATE
	}
	attr := unix.MountAttr{Propagation: propagation}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set propagation of root: %w", err)
	}
	return nil
}

// finishRoot takes away what the process mustn't change or see.
func finishRoot(root *Root) error {
	for _, m := range root.Mounts {
		if !m.readOnlyLast() {
			continue
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		fd, err := openInRoot(m.Dest)
		if err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", m.Dest, err)
		}
	}
	if root.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	for _, path := range root.ReadPaths {
		if err := freeze(path); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for _, path := range root.Masked {
		if err := mask(path); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	return nil
}

// freeze makes a path read-only with all that is mounted below it. A path that
// doesn't exist needs nothing.
func freeze(path string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mask covers a file with /dev/null, or a directory with an empty one. A path
// that doesn't exist needs nothing.
func mask(path string) error {
	target, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	var cover int
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		cover, err = newMount("tmpfs", "tmpfs", []string{"nr_blocks=1", "nr_inodes=1"}, unix.MOUNT_ATTR_RDONLY)
	} else {
		cover, err = cloneNull()
	}
	if err != nil {
		return err
	}
	defer unix.Close(cover)
	if err := setAttr(cover, unix.MOUNT_ATTR_RDONLY, 0, 0, 0); err != nil {
		return err
	}
	return unix.MoveMount(cover, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// cloneNull is a detached bind of /dev/null, checked to be the device: a path
// masked with a file of the image wouldn't be masked at all (CVE-2025-31133).
func cloneNull() (int, error) {
	fd, err := openNull(unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

// openNull opens the container's /dev/null.
func openNull(flags int) (int, error) {
	fd, err := unix.Open("/dev/null", flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/null: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		unix.Close(fd)
		return -1, errors.New("the container's /dev/null is not the null device")
	}
	return fd, nil
}

// writeSysctls sets kernel parameters through a procfs of our own.
func writeSysctls(proc int, list []Sysctl) error {
	for _, s := range list {
		how := unix.OpenHow{
			Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		}
		fd, err := unix.Openat2(proc, "sys/"+s.Path, &how)
		if err == nil {
			_, err = unix.Write(fd, []byte(s.Value))
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", s.Path, s.Value, err)
		}
	}
	return nil
}
