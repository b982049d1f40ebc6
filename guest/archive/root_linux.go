package archive

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/symlink"
)

// Root is a directory that paths can't lead out of.
type Root struct{ dir *os.File }

// Open makes a Root of a directory.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Root{os.NewFile(uintptr(fd), dir)}, nil
}

// Close lets go of the directory.
func (r *Root) Close() error { return r.dir.Close() }

// lookups is how often a path is looked up again that somebody renames
// meanwhile: the kernel then can't tell whether ".." leads out.
const lookups = 1000

// Open opens a path as a process with this root would, following links.
func (r *Root) Open(p string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if p == "" {
		p = "/"
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(int(r.dir.Fd()), p, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), p), nil
		}
		if err != unix.EAGAIN && err != unix.EINTR || tries == lookups {
			return nil, &fs.PathError{Op: "open", Path: p, Err: err}
		}
	}
}

const pathDir = unix.O_PATH | unix.O_DIRECTORY

// absolute is Docker's reading of a path: from the root, whatever it begins
// with, and with the slash or dot at its end, which asks for a directory.
func absolute(p string) string {
	clean := path.Clean("/" + p)
	switch {
	case strings.HasSuffix(p, "/.") || p == ".":
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

// entry finds a path's last element, which is not followed unless the path ends
// in a slash or dot: its directory, and its name there, "." for the directory
// itself.
func (r *Root) entry(p string) (dir *os.File, name string, err error) {
	abs := absolute(p)
	if strings.HasSuffix(abs, "/") || strings.HasSuffix(abs, "/.") {
		dir, err = r.Open(abs, pathDir)
		return dir, ".", err
	}
	dir, err = r.Open(path.Dir(abs), pathDir)
	return dir, path.Base(abs), err
}

// Stat is what `docker cp` is told of a path.
type Stat struct {
	Name    string
	Size    int64
	Mode    fs.FileMode
	ModTime time.Time
	// Target is where a symbolic link leads in the end, as an absolute path.
	Target string
}

// Stat describes a path, whose last element is not followed.
func (r *Root) Stat(p string) (Stat, error) {
	dir, name, err := r.entry(p)
	if err != nil {
		return Stat{}, err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Stat{}, &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	out := Stat{Name: path.Base(absolute(p)), Size: st.Size, Mode: fileMode(st.Mode), ModTime: time.Unix(st.Mtim.Unix())}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if out.Target, err = symlink.Follow(absolute(p), r.readlink); err != nil {
			return Stat{}, err
		}
	}
	return out, nil
}

// fileMode is a mode in Go's terms.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	if m&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if m&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if m&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

func (r *Root) readlink(p string) (string, error) {
	f, err := r.Open(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readlinkAt(f, "")
}

func readlinkAt(dir *os.File, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, b)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(b[:n]), nil
}

// Target opens where something is to be mounted, and makes it, with the
// directories above it, when it isn't there.
func (r *Root) Target(p string, dir bool) (*os.File, error) {
	name, err := symlink.Follow(absolute(p), r.readlink)
	if err != nil {
		return nil, err
	}
	if name == "/" {
		return r.Open("/", unix.O_PATH)
	}
	parent, err := r.makeDirs(path.Dir(name), 0, 0)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if dir {
		err = unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755)
	} else {
		var fd int
		if fd, err = unix.Openat(int(parent.Fd()), path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o755); err == nil {
			unix.Close(fd)
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "make", Path: name, Err: err}
	}
	return r.Open(name, unix.O_PATH)
}

// makeDirs opens a directory, following links, and makes it with those above it
// when it isn't there; new ones belong to uid and gid.
func (r *Root) makeDirs(p string, uid, gid int) (*os.File, error) {
	dir, err := r.Open(p, pathDir)
	if !errors.Is(err, fs.ErrNotExist) || p == "/" {
		return dir, err
	}
	parent, err := r.makeDirs(path.Dir(p), uid, gid)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := path.Base(p)
	switch err := unix.Mkdirat(int(parent.Fd()), base, 0o755); {
	case err == nil:
		if err := unix.Fchownat(int(parent.Fd()), base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &fs.PathError{Op: "chown", Path: p, Err: err}
		}
	case !errors.Is(err, unix.EEXIST):
		return nil, &fs.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return r.Open(p, pathDir)
}
