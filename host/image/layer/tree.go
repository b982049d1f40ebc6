package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"sampan/host/image/erofs"
)

// maxHops bounds symbolic links in one name, as Linux does.
const maxHops = 40

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
)

// tree places a layer's entries in an image.
type tree struct {
	w    *erofs.Writer
	o    Options
	rec  *recorder
	info Info
	made int // inodes and names
	// whiteouts are the inodes that stand for a ".wh." entry.
	whiteouts map[*erofs.Inode]bool
}

// add puts one entry into the image; r reads its contents.
func (t *tree) add(hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	t.info.Entries++
	path, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		return t.addRoot(hdr)
	}
	base := path[len(path)-1]
	for _, name := range path {
		if strings.HasPrefix(name, whiteoutMeta) && name != whiteoutOpaque {
			return nil
		}
	}
	dir, err := t.dir(path[:len(path)-1])
	if errors.Is(err, errNoDirectory) && strings.HasPrefix(base, whiteoutPrefix) {
		return nil // umoci hides what a folder had, and then the folder by a file
	}
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		opaque(dir)
		return nil
	}
	if name, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return t.whiteout(dir, name)
	}
	if hdr.Typeflag == tar.TypeDir {
		return t.addDir(dir, base, hdr)
	}
	inode, err := t.inode(hdr, r)
	if err != nil || inode == dir.Lookup(base) {
		return err
	}
	return t.link(dir, base, inode)
}

// inode makes what hdr describes, or finds it if that is a hard link.
func (t *tree) inode(hdr *tar.Header, r io.Reader) (*erofs.Inode, error) {
	a, err := attr(hdr)
	if err != nil {
		return nil, err
	}
	switch {
	case regular(hdr):
		if hdr.Size > t.o.MaxSize-t.info.Size {
			return nil, tooBig(t.o.MaxSize)
		}
		t.info.Size += hdr.Size
		file := func() (*erofs.Inode, error) { return t.w.File(a, hdr.Size, r) }
		if sparse(hdr) {
			return file()
		}
		return t.rec.contents(hdr.Size, file)
	case hdr.Typeflag == tar.TypeLink:
		return t.target(hdr.Linkname)
	case hdr.Typeflag == tar.TypeSymlink:
		a.Mode = 0o777
		return t.w.Symlink(a, hdr.Linkname)
	case hdr.Typeflag == tar.TypeChar:
		a.Mode |= erofs.TypeChar
	case hdr.Typeflag == tar.TypeBlock:
		a.Mode |= erofs.TypeBlock
	case hdr.Typeflag == tar.TypeFifo:
		a.Mode |= erofs.TypeFIFO
		return t.w.Special(a)
	default:
		return nil, fmt.Errorf("unknown type %q", hdr.Typeflag)
	}
	rdev, ok := erofs.Rdev(hdr.Devmajor, hdr.Devminor)
	if !ok {
		return nil, fmt.Errorf("device number %d:%d", hdr.Devmajor, hdr.Devminor)
	}
	a.Rdev = rdev
	return t.w.Special(a)
}

// target finds what a hard link points to.
func (t *tree) target(name string) (*erofs.Inode, error) {
	path, err := clean(name)
	if err != nil {
		return nil, err
	}
	if len(path) > 0 {
		dir, err := t.dir(path[:len(path)-1])
		if err != nil {
			return nil, err
		}
		inode := dir.Lookup(path[len(path)-1])
		if inode != nil && !inode.IsDir() && !t.whiteouts[inode] {
			return inode, nil
		}
	}
	return nil, fmt.Errorf("hard link to %q, which is not a file of the layer", shorten(name))
}

func (t *tree) addRoot(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return errors.New("the root is not a directory")
	}
	return t.setAttr(t.w.Root(), hdr)
}

func (t *tree) addDir(parent *erofs.Inode, name string, hdr *tar.Header) error {
	dir := parent.Lookup(name)
	if dir == nil || !dir.IsDir() {
		dir = t.w.NewDir(erofs.Attr{})
		if err := t.link(parent, name, dir); err != nil {
			return err
		}
	}
	return t.setAttr(dir, hdr)
}

// setAttr keeps a mark of opaqueness.
func (t *tree) setAttr(dir *erofs.Inode, hdr *tar.Header) error {
	a, err := attr(hdr)
	if err != nil {
		return err
	}
	_, isOpaque := dir.Attr().Xattrs[opaqueXattr]
	dir.SetAttr(a)
	if isOpaque {
		opaque(dir)
	}
	return nil
}

// link gives inode a name, also if that has been whited out before.
func (t *tree) link(dir *erofs.Inode, name string, inode *erofs.Inode) error {
	if t.made++; t.made > t.o.MaxEntries {
		return fmt.Errorf("%w: more than the limit of %d entries", ErrTooBig, t.o.MaxEntries)
	}
	old := dir.Lookup(name)
	if err := t.w.Link(dir, name, inode); err != nil {
		return err
	}
	if old != nil && t.whiteouts[old] {
		delete(t.whiteouts, old)
		if inode.IsDir() {
			opaque(inode)
		}
	}
	return nil
}

// whiteout hides a name of the layers below.
func (t *tree) whiteout(dir *erofs.Inode, name string) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("whiteout of no name")
	}
	if old := dir.Lookup(name); old != nil {
		// A layer's own file hides the one below as it is.
		if old.IsDir() {
			opaque(old)
		}
		return nil
	}
	inode, err := t.w.Special(erofs.Attr{Mode: erofs.TypeChar})
	if err != nil {
		return err
	}
	t.whiteouts[inode] = true
	return t.link(dir, name, inode)
}

// opaque hides what the layers below have in dir.
func opaque(dir *erofs.Inode) {
	a := dir.Attr()
	xattrs := map[string]string{opaqueXattr: "y"}
	maps.Copy(xattrs, a.Xattrs)
	a.Xattrs = xattrs
	dir.SetAttr(a)
}

var errNoDirectory = errors.New("is not a directory")

// dir finds a directory, following the layer's symbolic links, and makes what
// is missing.
func (t *tree) dir(path []string) (*erofs.Inode, error) {
	dir, hops := t.w.Root(), 0
	for len(path) > 0 {
		name := path[0]
		path = path[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			dir = dir.Parent()
			continue
		}
		child := dir.Lookup(name)
		switch {
		case child == nil || t.whiteouts[child]:
			child = t.w.NewDir(erofs.Attr{Mode: 0o755})
			if err := t.link(dir, name, child); err != nil {
				return nil, err
			}
			dir = child
		case child.IsDir():
			dir = child
		case child.Target != "":
			if hops++; hops > maxHops {
				return nil, errors.New("too many levels of symbolic links")
			}
			if strings.HasPrefix(child.Target, "/") {
				dir = t.w.Root()
			}
			path = append(strings.Split(child.Target, "/"), path...)
		default:
			return nil, fmt.Errorf("parent %q %w", name, errNoDirectory)
		}
	}
	return dir, nil
}

// clean splits a name of a tar into its components.
func clean(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("name of %d bytes: at most %d", len(name), maxPath)
	}
	rooted := strings.HasPrefix(name, "/")
	var path []string
	for name := range strings.SplitSeq(name, "/") {
		switch name {
		case "", ".":
		case "..":
			if len(path) == 0 && !rooted {
				return nil, errors.New("name points out of the layer")
			}
			path = path[:max(len(path)-1, 0)]
		default:
			path = append(path, name)
		}
	}
	return path, nil
}
