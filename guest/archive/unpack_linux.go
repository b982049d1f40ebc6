package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotDirectory says that the place to unpack to is none.
var ErrNotDirectory = errors.New("extraction point is not a directory")

// ErrKind says that a file would have taken a directory's place, or the other
// way round.
var ErrKind = errors.New("cannot overwrite")

// Owner of a file.
type Owner struct{ UID, GID int }

// Options of Unpack.
type Options struct {
	// KeepKind refuses to replace a directory by something else, and something
	// else by a directory (ErrKind).
	KeepKind bool
	// Own gives the place to unpack to itself what the tar says of it.
	Own bool
	// Owner is who gets everything. Nil: whom the tar names.
	Owner *Owner
}

// Unpack reads a tar to its end and unpacks it to a directory, whose path is
// followed. Links in the tar, and those that are there, lead where they would
// lead a process of the container.
func (r *Root) Unpack(rd io.Reader, p string, o Options) error {
	dir, err := r.Open(absolute(p), unix.O_PATH)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(dir.Fd()), &st)
	dir.Close()
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return ErrNotDirectory
	}
	u := unpacker{root: r, at: path.Clean("/" + p), o: o}
	tr := tar.NewReader(rd)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := u.entry(hdr, tr); err != nil {
			return err
		}
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := u.dirs[i].restore(r); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, rd)
	return err
}

type unpacker struct {
	root *Root
	at   string // where to, without a slash at the end
	o    Options
	dirs []dirTime
}

// dirTime is a directory's time, set after everything in it has been made.
type dirTime struct {
	path string
	at   time.Time
}

func (d dirTime) restore(r *Root) error {
	dir, err := r.Open(d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if gone(err) { // a container has moved it meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return setTime(dir, d.at)
}

// place is where a name of the tar leads: its directory, which is made when
// missing, and its last element; name is "." for the place to unpack to itself.
func (u *unpacker) place(name string) (dir *os.File, base string, err error) {
	clean := path.Clean(name)
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return nil, "", fmt.Errorf("%q is outside of %q", name, u.at)
	}
	clean = path.Clean("/" + clean)
	if clean == "/" {
		dir, err = u.root.Open(u.at, pathDir)
		return dir, ".", err
	}
	uid, gid := u.owner(0, 0)
	dir, err = u.root.makeDirs(path.Join(u.at, path.Dir(clean)), uid, gid)
	return dir, path.Base(clean), err
}

func (u *unpacker) owner(uid, gid int) (int, int) {
	if u.o.Owner != nil {
		return u.o.Owner.UID, u.o.Owner.GID
	}
	return uid, gid
}

func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeGNUSparse, tar.TypeCont:
	default:
		return fmt.Errorf("unhandled tar header type %d of %q", hdr.Typeflag, hdr.Name)
	}
	dir, name, err := u.place(hdr.Name)
	if err != nil {
		return err
	}
	defer dir.Close()
	exists, err := u.clear(dir, name, hdr)
	if err != nil || exists && name == "." && !u.o.Own {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(dir, name, hdr, exists)
	case tar.TypeLink:
		return u.link(dir, name, hdr)
	case tar.TypeSymlink:
		err = unix.Symlinkat(hdr.Linkname, int(dir.Fd()), name)
	case tar.TypeFifo:
		err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	default:
		return u.file(dir, name, hdr, content)
	}
	if err != nil {
		return &fs.PathError{Op: "make", Path: hdr.Name, Err: err}
	}
	return u.nodeAttrs(dir, name, hdr)
}

// clear makes room for an entry: what has its name is removed, but for a
// directory where one is to be.
func (u *unpacker) clear(dir *os.File, name string, hdr *tar.Header) (exists bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "stat", Path: hdr.Name, Err: err}
	}
	isDir, wantDir := st.Mode&unix.S_IFMT == unix.S_IFDIR, hdr.Typeflag == tar.TypeDir
	switch {
	case isDir && wantDir:
		return true, nil
	case isDir && u.o.KeepKind, isDir && name == ".":
		return false, fmt.Errorf("%w directory %q with non-directory %q", ErrKind, path.Join(u.at, hdr.Name), u.at)
	case wantDir && u.o.KeepKind:
		return false, fmt.Errorf("%w non-directory %q with directory %q", ErrKind, path.Join(u.at, hdr.Name), u.at)
	}
	return false, removeAt(dir, name, 0)
}

// removeAt removes an entry of dir with all below it.
func removeAt(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	if depth > maxDepth {
		return &fs.PathError{Op: "remove", Path: name, Err: unix.ENAMETOOLONG}
	}
	sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAt(sub, n, depth+1); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

func (u *unpacker) directory(dir *os.File, name string, hdr *tar.Header, exists bool) error {
	if !exists {
		if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil {
			return &fs.PathError{Op: "mkdir", Path: hdr.Name, Err: err}
		}
	}
	d, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer d.Close()
	u.dirs = append(u.dirs, dirTime{path.Join(u.at, path.Clean("/"+hdr.Name)), hdr.ModTime})
	return u.attrs(d, hdr)
}

// link gives a file of the tar, or one that is there, another name.
func (u *unpacker) link(dir *os.File, name string, hdr *tar.Header) error {
	from, base, err := u.place(hdr.Linkname)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := unix.Linkat(int(from.Fd()), base, int(dir.Fd()), name, 0); err != nil {
		return &os.LinkError{Op: "link", Old: hdr.Linkname, New: hdr.Name, Err: err}
	}
	return nil
}

func (u *unpacker) file(dir *os.File, name string, hdr *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: hdr.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := u.attrs(f, hdr); err != nil {
		return err
	}
	return setTime(f, hdr.ModTime)
}

// attrs sets owner, attributes and mode, in this order: a change of the owner
// takes setuid bits and capabilities away.
func (u *unpacker) attrs(f *os.File, hdr *tar.Header) error {
	uid, gid := u.owner(hdr.Uid, hdr.Gid)
	if err := unix.Fchown(int(f.Fd()), uid, gid); err != nil {
		return &fs.PathError{Op: "chown", Path: hdr.Name, Err: err}
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || strings.HasPrefix(name, "trusted.") {
			continue
		}
		err := unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: attribute %s: %w", hdr.Name, name, err)
		}
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(hdr.Mode&0o7777)); err != nil {
		return &fs.PathError{Op: "chmod", Path: hdr.Name, Err: err}
	}
	return nil
}

// nodeAttrs is attrs, and the time, for what can't be opened.
func (u *unpacker) nodeAttrs(dir *os.File, name string, hdr *tar.Header) error {
	uid, gid := u.owner(hdr.Uid, hdr.Gid)
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "chown", Path: hdr.Name, Err: err}
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// By a descriptor: a link may have taken its place.
		node, err := openAt(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer node.Close()
		err = unix.Fchmodat(int(node.Fd()), "", uint32(hdr.Mode&0o7777), unix.AT_EMPTY_PATH)
		if err != nil {
			return &fs.PathError{Op: "chmod", Path: hdr.Name, Err: err}
		}
	}
	ts := timespec(hdr.ModTime)
	return unix.UtimesNanoAt(fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func setTime(f *os.File, at time.Time) error {
	ts := timespec(at)
	return unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return unix.Timespec{}
	}
	return ts
}
