package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// treeCopier copies a directory with owners, modes, times, extended attributes
// and hard links. It works by descriptors alone, so that no symbolic link in
// the tree can lead out of it.
type treeCopier struct {
	links map[inode]link // of files with several names
	files int
}

type inode struct{ dev, ino uint64 }

// link is the first copy of a file: its directory stays open until the end.
type link struct {
	dir  *os.File
	name string
}

// copyTree copies what is in src, and src's own attributes, to dst, an empty
// directory. It returns how many files were copied.
func copyTree(dst, src *os.File) (files int, err error) {
	c := treeCopier{links: map[inode]link{}}
	defer func() {
		for _, l := range c.links {
			l.dir.Close()
		}
	}()
	err = c.dir(dst, src)
	return c.files, err
}

func (c *treeCopier) dir(dst, src *os.File) error {
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := c.entry(dst, src, n); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	return copyAttrs(dst, src, &st)
}

func (c *treeCopier) entry(dst, src *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	c.files++
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		done, err := c.hardLink(dst, name, &st)
		if done || err != nil {
			return err
		}
	}
	d, s := int(dst.Fd()), int(src.Fd())
	switch kind {
	case unix.S_IFDIR, unix.S_IFREG:
		return c.content(dst, src, name, &st)
	case unix.S_IFLNK:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(s, name, b)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(b[:n]), d, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(d, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return nodeAttrs(d, name, &st)
}

// hardLink gives dst another name of a file that was copied before; if it was
// not, it remembers this first one.
func (c *treeCopier) hardLink(dst *os.File, name string, st *unix.Stat_t) (done bool, err error) {
	key := inode{uint64(st.Dev), st.Ino}
	if l, ok := c.links[key]; ok {
		return true, unix.Linkat(int(l.dir.Fd()), l.name, int(dst.Fd()), name, 0)
	}
	fd, err := unix.FcntlInt(dst.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	c.links[key] = link{os.NewFile(uintptr(fd), dst.Name()), name}
	return false, nil
}

// content copies a directory or a regular file.
func (c *treeCopier) content(dst, src *os.File, name string, st *unix.Stat_t) error {
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	flags := unix.O_NOFOLLOW | unix.O_CLOEXEC
	from, err := openAt(src, name, flags|unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if isDir {
		if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
			return err
		}
		to, err := openAt(dst, name, flags|unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer to.Close()
		return c.dir(to, from)
	}
	to, err := openAt(dst, name, flags|unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return copyAttrs(to, from, st)
}

func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags, mode)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// copyAttrs copies owner, attributes, mode and times, in this order: a change
// of the owner takes setuid bits and capabilities away.
func copyAttrs(dst, src *os.File, st *unix.Stat_t) error {
	fd := int(dst.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(fd, int(src.Fd())); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// nodeAttrs is copyAttrs for what can't be opened.
func nodeAttrs(dir int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyXattrs(dst, src int) error {
	n, err := unix.Flistxattr(src, nil)
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}
	list := make([]byte, n)
	if n, err = unix.Flistxattr(src, list); err != nil {
		return err
	}
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if attr == "" { // overlayfs counts its own, and then doesn't list them
			continue
		}
		size, err := unix.Fgetxattr(src, attr, nil)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
		value := make([]byte, size)
		if size, err = unix.Fgetxattr(src, attr, value); err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
		if err := unix.Fsetxattr(dst, attr, value[:size], 0); err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}
