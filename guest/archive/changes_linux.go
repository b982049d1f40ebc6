package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kind of a change, in Docker's numbers.
type Kind int

// Kinds of changes.
const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one of a writable layer.
type Change struct {
	Path string
	Kind Kind
}

// Layer is a container's writable layer over its image.
type Layer struct {
	// Upper is the writable directory of an overlay, Lower what it lies over,
	// as one tree.
	Upper, Lower *Root
	// Init is what the runtime puts below the image, and for it where it must:
	// a copy is no change. May be nil.
	Init *Root
}

// Changes lists what the layer changes, parents first, in order.
func (l *Layer) Changes() ([]Change, error) {
	root, err := l.read()
	if err != nil {
		return nil, err
	}
	var out []Change
	var list func(n *changed)
	list = func(n *changed) {
		for _, c := range n.children {
			out = append(out, Change{c.path, c.kind})
			list(c)
		}
	}
	list(root)
	return out, nil
}

// Size of what the layer adds and changes, in bytes.
func (l *Layer) Size() (int64, error) {
	root, err := l.read()
	if err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	var sum func(n *changed) int64
	sum = func(n *changed) (total int64) {
		if n.kind != Deleted && n.st.Mode&unix.S_IFMT == unix.S_IFREG && (n.st.Nlink < 2 || !seen[n.st.Ino]) {
			seen[n.st.Ino] = true
			total += n.st.Size
		}
		for _, c := range n.children {
			total += sum(c)
		}
		return total
	}
	return sum(root), nil
}

// Pack writes the layer as a tar, with whiteouts for what it deletes.
func (l *Layer) Pack(w io.Writer) error {
	root, err := l.read()
	if err != nil {
		return err
	}
	t := newPacker(w)
	dir, err := l.Upper.Open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := t.changes(dir, root); err != nil {
		return err
	}
	return t.tw.Close()
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// changes writes the changed entries of a directory of the upper tree.
func (t *packer) changes(dir *os.File, n *changed) error {
	for _, c := range n.children {
		name := path.Base(c.path)
		as := c.path[1:]
		var err error
		switch {
		case c.kind == Deleted && n.opaque: // said once, for all
		case c.kind == Deleted:
			err = t.tw.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: path.Join(path.Dir(as), whiteout+name), ModTime: time.Unix(int64(n.st.Mtim.Sec), 0)})
		case c.st.Mode&unix.S_IFMT != unix.S_IFDIR:
			err = t.add(dir, name, as, 1)
		default:
			err = t.changedDir(dir, name, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *packer) changedDir(parent *os.File, name string, c *changed) error {
	as := c.path[1:]
	if err := t.tw.WriteHeader(header(&c.st, as+"/", tar.TypeDir)); err != nil {
		return err
	}
	if c.opaque {
		err := t.tw.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: path.Join(as, opaque), ModTime: time.Unix(int64(c.st.Mtim.Sec), 0)})
		if err != nil {
			return err
		}
	}
	dir, err := openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return t.changes(dir, c)
}

// changed is a changed path, and the changed ones below it.
type changed struct {
	path     string
	kind     Kind
	st       unix.Stat_t // in the upper tree
	opaque   bool        // hides what the image has there
	children []*changed
}

func (l *Layer) read() (*changed, error) {
	dir, err := l.Upper.Open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	root := &changed{path: "/"}
	return root, l.descend(root, dir, true, 0)
}

// descend finds what is changed in a directory of the upper tree. inLower says
// that the lower one has that directory, too.
func (l *Layer) descend(n *changed, dir *os.File, inLower bool, depth int) error {
	if depth > maxDepth {
		return &fs.PathError{Op: "read", Path: n.path, Err: unix.ENAMETOOLONG}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	if n.opaque && inLower {
		lower, err := l.lowerNames(n.path)
		if err != nil {
			return err
		}
		for _, name := range lower {
			if !slices.Contains(names, name) {
				n.children = append(n.children, &changed{path: path.Join(n.path, name), kind: Deleted})
			}
		}
	}
	for _, name := range names {
		if err := l.entry(n, dir, name, inLower, depth); err != nil {
			return err
		}
	}
	slices.SortFunc(n.children, func(a, b *changed) int {
		switch {
		case a.path < b.path:
			return -1
		case a.path > b.path:
			return 1
		}
		return 0
	})
	return nil
}

func (l *Layer) entry(n *changed, dir *os.File, name string, inLower bool, depth int) error {
	c := &changed{path: path.Join(n.path, name), kind: Added}
	err := unix.Fstatat(int(dir.Fd()), name, &c.st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: c.path, Err: err}
	}
	if c.st.Mode&unix.S_IFMT == unix.S_IFCHR && c.st.Rdev == 0 {
		c.kind = Deleted
		n.children = append(n.children, c)
		return nil
	}
	var old unix.Stat_t
	inImage, same := inLower && stat(l.Lower, c.path, &old), false
	if inImage || l.Init != nil && stat(l.Init, c.path, &old) {
		c.kind, same = Modified, alike(&c.st, &old, inImage)
		if same && !inImage && c.st.Mode&unix.S_IFMT == unix.S_IFLNK { // no time tells
			same = readlink(l.Upper, c.path) == readlink(l.Init, c.path)
		}
	}
	if c.st.Mode&unix.S_IFMT == unix.S_IFDIR {
		sub, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer sub.Close()
		if v, err := getxattr(int(sub.Fd()), "trusted.overlay.opaque"); err == nil && string(v) == "y" {
			c.opaque = inImage && old.Mode&unix.S_IFMT == unix.S_IFDIR
		}
		if err := l.descend(c, sub, inImage && old.Mode&unix.S_IFMT == unix.S_IFDIR, depth+1); err != nil {
			return err
		}
	}
	if same && len(c.children) == 0 && !c.opaque {
		return nil
	}
	n.children = append(n.children, c)
	return nil
}

// alike says that a copy in the upper tree is no change. A directory's size and
// time say nothing of itself, and a file's time little unless it was kept.
func alike(a, b *unix.Stat_t, kept bool) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Rdev == b.Rdev &&
		(a.Mode&unix.S_IFMT == unix.S_IFDIR || a.Size == b.Size && (!kept || a.Mtim == b.Mtim))
}

func stat(r *Root, p string, st *unix.Stat_t) bool {
	f, err := r.Open(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Fstat(int(f.Fd()), st) == nil
}

// readlink is where a link leads, or "".
func readlink(r *Root, p string) string {
	f, err := r.Open(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func (l *Layer) lowerNames(p string) ([]string, error) {
	dir, err := l.Lower.Open(p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}
