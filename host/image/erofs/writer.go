package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Output receives an image. Blocks that are never written must read as zeros,
// as those of a new file do; *os.File is one.
type Output interface {
	io.WriterAt
	Truncate(size int64) error
}

// Inode is a file, device, link or directory of an image. It may be given
// several names, unless it is a directory.
type Inode struct {
	// Target of a symbolic link.
	Target string

	mode  uint16
	links uint32
	many  bool // links was above 1 at some time
	pos   int64
	dir   *directory
}

// Mode as in stat(2).
func (i *Inode) Mode() uint16 { return i.mode }

// IsDir reports whether i is a directory.
func (i *Inode) IsDir() bool { return i.dir != nil }

// Writer writes one image. After an error it is of no more use.
type Writer struct {
	out    Output
	buf    []byte // contents not yet written; starts at a block boundary
	pos    int64  // offset of the end of buf in the image
	meta   meta
	linked []*Inode // whose link count is to be patched
	inodes uint32   // that have a name, without directories
	serial uint32   // of the last inode
	root   *Inode
	tail   [BlockSize]byte
}

const bufSize = 1 << 20

// NewWriter starts an image whose root directory has the permissions 0755 and
// belongs to root, until SetAttr says otherwise.
func NewWriter(out Output) *Writer {
	w := &Writer{out: out, buf: make([]byte, 0, bufSize), pos: BlockSize}
	w.root = w.NewDir(Attr{Mode: TypeDir | 0o755})
	w.root.links, w.root.dir.parent = 1, w.root
	return w
}

// Root is the image's root directory.
func (w *Writer) Root() *Inode { return w.root }

// Size is how long the image is by now.
func (w *Writer) Size() int64 { return w.pos + int64(len(w.meta.buf)) }

// File adds a regular file and reads its size bytes from r. It has no name yet.
func (w *Writer) File(a Attr, size int64, r io.Reader) (*Inode, error) {
	a.Mode = a.Mode&^TypeMask | TypeRegular
	return w.file(a, size, r)
}

func (w *Writer) file(a Attr, size int64, r io.Reader) (*Inode, error) {
	if size < 0 {
		return nil, fmt.Errorf("file of %d bytes", size)
	}
	xattrs, count, err := w.xattrs(&a)
	if err != nil {
		return nil, err
	}
	tail := int(size % BlockSize)
	layout := uint16(layoutInline)
	if tail == 0 || inodeSize+len(xattrs)+tail > BlockSize {
		layout, tail = layoutPlain, 0
	}
	start, err := w.contents(r, size-int64(tail))
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, w.tail[:tail]); err != nil {
		return nil, unexpected(err)
	}
	return w.inode(&a, layout, xattrs, count, size, start, w.tail[:tail])
}

// Symlink adds a symbolic link.
func (w *Writer) Symlink(a Attr, target string) (*Inode, error) {
	if target == "" || len(target) >= BlockSize {
		return nil, fmt.Errorf("symbolic link to a name of %d bytes: want 1 to %d", len(target), BlockSize-1)
	}
	a.Mode = a.Mode&^TypeMask | TypeSymlink
	inode, err := w.file(a, int64(len(target)), strings.NewReader(target))
	if err != nil {
		return nil, err
	}
	inode.Target = target
	return inode, nil
}

// Special adds a device (by a.Mode and a.Rdev), a fifo or a socket.
func (w *Writer) Special(a Attr) (*Inode, error) {
	switch a.Mode & TypeMask {
	case TypeChar, TypeBlock:
	case TypeFIFO, TypeSocket:
		a.Rdev = 0
	default:
		return nil, fmt.Errorf("mode %#o is not that of a device, fifo or socket", a.Mode)
	}
	xattrs, count, err := w.xattrs(&a)
	if err != nil {
		return nil, err
	}
	return w.inode(&a, layoutPlain, xattrs, count, 0, a.Rdev, nil)
}

// NewDir adds an empty directory. It is part of the image once it has a name.
func (w *Writer) NewDir(a Attr) *Inode {
	d := &Inode{dir: &directory{entries: map[string]*Inode{}}}
	d.SetAttr(a)
	return d
}

// Close completes the image. uuid names it to the kernel (overlayfs tells
// layers apart by it).
func (w *Writer) Close(uuid [16]byte) error {
	if err := w.flushMeta(); err != nil {
		return err
	}
	head := make([]byte, BlockSize)
	dirs, err := w.directories(head)
	if err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	for _, inode := range w.linked {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], inode.links)
		if _, err := w.out.WriteAt(b[:], inode.pos+nlinkOffset); err != nil {
			return err
		}
	}
	if err := w.out.Truncate(w.pos); err != nil {
		return err
	}
	putSuper(head, uint64(w.inodes)+uint64(dirs), uint32(w.pos/BlockSize), uuid)
	_, err = w.out.WriteAt(head, 0)
	return err
}

// inode adds an inode with a link count of 1 to the metadata.
func (w *Writer) inode(a *Attr, layout uint16, xattrs []byte, count int, size int64, data uint32, tail []byte) (*Inode, error) {
	n := inodeSize + len(xattrs) + len(tail)
	if !w.meta.fits(n) {
		if err := w.flushMeta(); err != nil {
			return nil, err
		}
	}
	i := &Inode{mode: a.Mode}
	w.inodes++
	w.serial++
	b := w.meta.alloc(i, n)
	putInode(b, layout, count, a, size, data, w.serial, 1)
	copy(b[inodeSize:], xattrs)
	copy(b[inodeSize+len(xattrs):], tail)
	return i, nil
}

func (w *Writer) xattrs(a *Attr) (body []byte, count int, err error) {
	for name, value := range a.Xattrs {
		if !XattrSupported(name) || len(value) > math.MaxUint16 {
			return nil, 0, fmt.Errorf("extended attribute %q of %d bytes", name, len(value))
		}
	}
	body, count = encodeXattrs(a.Xattrs)
	if count > math.MaxUint16 {
		return nil, 0, fmt.Errorf("extended attributes of %d bytes", len(body))
	}
	return body, count, nil
}

// contents copies size bytes of r into blocks of their own; the last one is
// filled up with zeros. The result is the first block's number.
func (w *Writer) contents(r io.Reader, size int64) (start uint32, err error) {
	if size == 0 {
		return 0, nil
	}
	if w.pos+size > BlockSize*math.MaxUint32 {
		return 0, errors.New("image above 16 TiB")
	}
	start = uint32(w.pos / BlockSize)
	for size > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		n := int(min(size, int64(cap(w.buf)-len(w.buf))))
		w.buf = w.buf[:len(w.buf)+n]
		if _, err := io.ReadFull(r, w.buf[len(w.buf)-n:]); err != nil {
			return 0, unexpected(err)
		}
		w.pos += int64(n)
		size -= int64(n)
	}
	w.pad()
	return start, nil
}

// block adds blocks as they are.
func (w *Writer) block(b []byte) error {
	for len(b) > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		n := copy(w.buf[len(w.buf):cap(w.buf)], b)
		w.buf = w.buf[:len(w.buf)+n]
		w.pos += int64(n)
		b = b[n:]
	}
	return nil
}

// pad fills the last block with zeros. There is room for it: buf's capacity
// is a multiple of the block size.
func (w *Writer) pad() {
	n := (BlockSize - len(w.buf)%BlockSize) % BlockSize
	clear(w.buf[len(w.buf) : len(w.buf)+n])
	w.buf = w.buf[:len(w.buf)+n]
	w.pos += int64(n)
}

// flush writes buf, leaving holes for blocks of zeros.
func (w *Writer) flush() error {
	b, at := w.buf, w.pos-int64(len(w.buf))
	for len(b) > 0 {
		n := 0
		for n < len(b) && isZero(b[n:n+BlockSize]) {
			n += BlockSize
		}
		b, at = b[n:], at+int64(n)
		n = 0
		for n < len(b) && !isZero(b[n:n+BlockSize]) {
			n += BlockSize
		}
		if n > 0 {
			if _, err := w.out.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		b, at = b[n:], at+int64(n)
	}
	w.buf = w.buf[:0]
	return nil
}

func isZero(block []byte) bool {
	for i := 0; i < BlockSize; i += 8 {
		if binary.LittleEndian.Uint64(block[i:]) != 0 {
			return false
		}
	}
	return true
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
