package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep directories are followed: each holds a descriptor.
const maxDepth = 1024

const capability = "security.capability"

// Pack writes a tar of a path, whose last element is not followed. The names in
// it begin with that element's.
func (r *Root) Pack(w io.Writer, p string) error {
	dir, name, err := r.entry(p)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return fmt.Errorf("%s: sockets can't be copied", p)
	}
	as := path.Base(absolute(p))
	if as == "/" {
		as = ""
	}
	t := newPacker(w)
	if err := t.add(dir, name, as, 0); err != nil {
		return err
	}
	return t.tw.Close()
}

// Export writes a tar of everything.
func (r *Root) Export(w io.Writer) error {
	t := newPacker(w)
	dir, err := r.Open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := t.children(dir, "", 0); err != nil {
		return err
	}
	return t.tw.Close()
}

// packer writes a tar. Files with several names are written once.
type packer struct {
	tw    *tar.Writer
	links map[inode]string
	buf   []byte
}

type inode struct{ dev, ino uint64 }

func newPacker(w io.Writer) *packer {
	return &packer{tw: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, 128<<10)}
}

// add writes the entry name of dir under another name, and all below it. What
// has gone meanwhile is left out.
func (t *packer) add(dir *os.File, name, as string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) && depth > 0 {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: as, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return t.directory(dir, name, as, depth)
	case unix.S_IFREG:
		return t.regular(dir, name, as)
	case unix.S_IFSOCK:
		return nil
	}
	return t.node(dir, name, as, &st)
}

func (t *packer) directory(parent *os.File, name, as string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: %w", as, unix.ENAMETOOLONG)
	}
	dir, err := openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := t.tw.WriteHeader(header(&st, as+"/", tar.TypeDir)); err != nil {
		return err
	}
	return t.children(dir, as+"/", depth)
}

func (t *packer) children(dir *os.File, prefix string, depth int) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := t.add(dir, n, prefix+n, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// gone says that an entry is no longer what it was when its directory was read.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO)
}

// regular writes a file. Its size is told before its content, and a file that
// changes meanwhile must not change that.
func (t *packer) regular(dir *os.File, name, as string) error {
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	hdr := header(&st, as, tar.TypeReg)
	if done, err := t.linked(hdr, &st); done || err != nil {
		return err
	}
	hdr.Size = st.Size
	if value, err := getxattr(int(f.Fd()), capability); err == nil {
		hdr.PAXRecords = map[string]string{"SCHILY.xattr." + capability: string(value)}
	}
	if err := t.tw.WriteHeader(hdr); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{t.tw}, io.LimitReader(f, st.Size), t.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	_, err = io.CopyN(t.tw, zeros{}, st.Size-n)
	return err
}

// onlyWriter hides ReadFrom, which would not use our buffer.
type onlyWriter struct{ io.Writer }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// linked writes another name of a file that has been written.
func (t *packer) linked(hdr *tar.Header, st *unix.Stat_t) (done bool, err error) {
	if st.Nlink < 2 {
		return false, nil
	}
	key := inode{uint64(st.Dev), st.Ino}
	first, ok := t.links[key]
	if !ok {
		t.links[key] = hdr.Name
		return false, nil
	}
	hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
	return true, t.tw.WriteHeader(hdr)
}

// node writes a symbolic link, a device or a pipe.
func (t *packer) node(dir *os.File, name, as string, st *unix.Stat_t) error {
	hdr := header(st, as, 0)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := readlinkAt(dir, name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return err
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if done, err := t.linked(hdr, st); done || err != nil {
		return err
	}
	return t.tw.WriteHeader(hdr)
}

func header(st *unix.Stat_t, name string, kind byte) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Name: name, Typeflag: kind, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(int64(st.Mtim.Sec), 0),
	}
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) && flags&unix.O_NOATIME != 0 { // a share of another's files
		fd, err = unix.Openat(int(dir.Fd()), name, flags&^unix.O_NOATIME|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func getxattr(fd int, name string) ([]byte, error) {
	b := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
