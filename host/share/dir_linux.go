package share

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a directory. Offsets are the host's own, which stay valid
// while entries come and go.
type dirStream struct {
	mu   sync.Mutex
	fd   int
	buf  []byte // of getdents64
	data []byte // what of buf is still to be given out
	off  uint64 // of the first entry in data
}

// dirBuffer is the size of one getdents64.
const dirBuffer = 32 << 10

// dirEntry is a line of a directory.
type dirEntry struct {
	fuse.DirEntry
	size int // in the buffer
}

// seek moves to an offset that an earlier entry had, or to 0.
func (d *dirStream) seek(off uint64) error {
	if d.buf != nil && d.off == off {
		return nil
	}
	d.data, d.off = nil, off
	_, err := unix.Seek(d.fd, int64(off), unix.SEEK_SET)
	return err
}

// peek returns the next entry, ok false at the end.
func (d *dirStream) peek() (e dirEntry, ok bool, err error) {
	if len(d.data) == 0 {
		if d.buf == nil {
			d.buf = make([]byte, dirBuffer)
		}
		var n int
		err := retry(func() error { n, err = unix.Getdents(d.fd, d.buf); return err })
		if err != nil || n <= 0 {
			return e, false, err
		}
		d.data = d.buf[:n]
	}
	// struct linux_dirent64: ino, off, reclen, type, name.
	e.Ino = binary.NativeEndian.Uint64(d.data)
	e.Off = binary.NativeEndian.Uint64(d.data[8:])
	e.size = int(binary.NativeEndian.Uint16(d.data[16:]))
	e.Mode = uint32(d.data[18]) << 12
	name := d.data[19:e.size]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	e.Name = string(name)
	return e, true, nil
}

// next goes past the entry that peek returned.
func (d *dirStream) next(e dirEntry) {
	d.data, d.off = d.data[e.size:], e.Off
}

// OpenDir opens a directory.
func (f *fileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID && f.exports != nil {
		return fuse.OK // ReadDir of the root needs no handle
	}
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	if !n.isDir() {
		return fuse.ENOTDIR
	}
	fd, err := openat(unix.AT_FDCWD, n.proc, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return status(err)
	}
	out.Fh, err = f.open(n, fd, &dirStream{fd: fd})
	return status(err)
}

// ReleaseDir closes a directory.
func (f *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { f.release(in.Fh) }

// ReadDir lists names.
func (f *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(n *node, e fuse.DirEntry) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus lists names and tells of their inodes.
func (f *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(p *node, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if p == nil || e.Name == "." || e.Name == ".." {
			return true
		}
		var st unix.Stat_t
		if n, err := f.child(p, e.Name, &st); err == nil {
			if !f.entry(n, &st, in.Caller, entry).Ok() {
				*entry = fuse.EntryOut{} // the guest looks it up itself
			}
			if !n.isDir() && !n.vol.frozen {
				entry.SetEntryTimeout(listTimeout)
				entry.SetAttrTimeout(listTimeout)
			}
			f.put(n)
		}
		return true
	})
}

// list gives entries to add from an offset on until it says that it is full.
// Only the root of exports has no node.
func (f *fileSystem) list(in *fuse.ReadIn, add func(*node, fuse.DirEntry) bool) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID && f.exports != nil {
		f.exports.list(in.Offset, func(e fuse.DirEntry) bool { return add(nil, e) })
		return fuse.OK
	}
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer f.putHandle(h)
	d := h.dir
	if d == nil {
		return fuse.ENOTDIR
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.seek(in.Offset); err != nil {
		return status(err)
	}
	for first := true; ; first = false {
		e, ok, err := d.peek()
		if err != nil && first {
			return status(err)
		}
		if err != nil || !ok {
			return fuse.OK
		}
		if e.Ino != 0 {
			e.Ino = f.inode(h.node.dev, e.Ino)
			if !add(h.node, e.DirEntry) {
				return fuse.OK
			}
		}
		d.next(e)
	}
}
