package share

import (
	"errors"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// signature changes with a file's content. Two opens that find the same one,
// with a change so long ago that the clock must have moved since, see the same
// content: the guest keeps the pages that it has. It can't be faked, as mtime
// can.
type signature struct {
	ctime unix.Timespec
	size  int64
}

// settled is after how long a change can't share its ctime with another.
const settled = 2 * time.Second

// unchanged compares fd with what the last open found.
func (n *node) unchanged(fd int) bool {
	var st unix.Stat_t
	if fstat(fd, &st) != nil {
		return false
	}
	now := &signature{ctime: st.Ctim, size: st.Size}
	last := n.sig.Load()
	if age := time.Since(time.Unix(st.Ctim.Unix())); age < settled {
		n.sig.Store(nil)
		return false
	}
	n.sig.Store(now)
	return last != nil && *last == *now
}

// hostFlags are the flags of an open that reach the host. O_DIRECT would ask
// for an alignment that the guest doesn't know of.
func hostFlags(guest uint32) int {
	return int(guest) & (unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC)
}

// appendFlags are the answer's flags for an open with O_APPEND. By way of its page
// cache Linux makes two requests of a write that goes over the end of a page, and
// what others append may come in between (fuse_fill_write_pages in fs/fuse/file.c
// of 6.12): so not by that way. Who reads by the same descriptor keeps it, and
// may map the file.
func appendFlags(flags int) uint32 {
	if flags&(unix.O_ACCMODE|unix.O_APPEND) == unix.O_WRONLY|unix.O_APPEND {
		return fuse.FOPEN_DIRECT_IO
	}
	return 0
}

// Open opens a file.
func (f *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	return f.openFile(n, in.Flags, in.Mode&fuse.OPEN_KILL_SUIDGID != 0, out)
}

func (f *fileSystem) openFile(n *node, guestFlags uint32, kill bool, out *fuse.OpenOut) fuse.Status {
	// The guest opens its own FIFOs and devices; here an open could block, or
	// do what only the host's user may.
	if n.kind != unix.S_IFREG {
		if n.isDir() {
			return fuse.EISDIR
		}
		return fuse.Status(unix.ENXIO)
	}
	flags := hostFlags(guestFlags)
	writes := flags&(unix.O_WRONLY|unix.O_RDWR|unix.O_TRUNC) != 0
	if writes && n.vol.readOnly {
		return fuse.EROFS
	}
	if flags&unix.O_TRUNC != 0 {
		defer f.events.file(n, content)()
	}
	fd, err := openat(unix.AT_FDCWD, n.proc, flags, 0)
	if err != nil {
		return status(err)
	}
	if kill && flags&unix.O_TRUNC != 0 {
		err = f.killSetID(n)
	}
	keep := n.vol.frozen || !writes && n.unchanged(fd)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	if out.Fh, err = f.open(n, fd, nil); err != nil {
		return status(err)
	}
	if keep {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	out.OpenFlags |= appendFlags(flags)
	return fuse.OK
}

// Read fills buf from a file.
func (f *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, code := f.readv(in.Fh, in.Offset, [][]byte{buf[:min(len(buf), int(in.Size))]})
	return fuse.ReadResultData(buf[:n]), code
}

// maxVectors is how many slices one system call takes (IOV_MAX).
const maxVectors = 1024

// readv fills bufs from a file, and stops at its end.
func (f *fileSystem) readv(id, offset uint64, bufs [][]byte) (int, fuse.Status) {
	h := f.handle(id)
	if h == nil {
		return 0, fuse.EBADF
	}
	defer f.putHandle(h)
	if h.dir != nil {
		return 0, fuse.EISDIR
	}
	return transfer(offset, bufs, func(b [][]byte, off int64) (int, error) { return unix.Preadv(h.fd, b, off) })
}

// writev writes bufs to a file.
func (f *fileSystem) writev(in *fuse.WriteIn, bufs [][]byte) (int, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	defer f.putHandle(h)
	if h.dir != nil {
		return 0, fuse.EISDIR
	}
	defer f.events.file(h.node, content)()
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.killSetID(h.node); err != nil {
			return 0, status(err)
		}
	}
	return transfer(in.Offset, bufs, func(b [][]byte, off int64) (int, error) { return unix.Pwritev(h.fd, b, off) })
}

// transfer repeats a vectored call until bufs are done or it has no more to do.
func transfer(offset uint64, bufs [][]byte, call func([][]byte, int64) (int, error)) (int, fuse.Status) {
	if offset > 1<<63-1 {
		return 0, fuse.EINVAL
	}
	done := 0
	for len(bufs) > 0 {
		batch := bufs[:min(len(bufs), maxVectors)]
		want := 0
		for _, b := range batch {
			want += len(b)
		}
		n, err := call(batch, int64(offset)+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			if done > 0 {
				return done, fuse.OK
			}
			return 0, status(err)
		}
		done += n
		if n < want {
			break
		}
		bufs = bufs[len(batch):]
	}
	return done, fuse.OK
}

// Write writes one piece of data.
func (f *fileSystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, code := f.writev(in, [][]byte{data})
	return uint32(n), code
}

// Writev writes data that lies in several pieces.
func (f *fileSystem) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	n, code := f.writev(in, data)
	return uint32(n), code
}

// Release closes a file.
func (f *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

// withFile calls do with an open file.
func (f *fileSystem) withFile(id uint64, do func(*handle) error) fuse.Status {
	h := f.handle(id)
	if h == nil {
		return fuse.EBADF
	}
	defer f.putHandle(h)
	return status(retry(func() error { return do(h) }))
}

// Fsync brings a file, or with flag 1 only its data, to the disk.
func (f *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.withFile(in.Fh, func(h *handle) error {
		if in.FsyncFlags&1 != 0 {
			return unix.Fdatasync(h.fd)
		}
		return unix.Fsync(h.fd)
	})
}

// FsyncDir brings a directory's entries to the disk.
func (f *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

// Fallocate reserves or frees space of a file.
func (f *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Offset > 1<<63-1 || in.Length > 1<<63-1 {
		return fuse.EINVAL
	}
	return f.withFile(in.Fh, func(h *handle) error {
		defer f.events.file(h.node, content)()
		return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// Lseek finds data and holes.
func (f *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE || in.Offset > 1<<63-1 {
		return fuse.EINVAL
	}
	return f.withFile(in.Fh, func(h *handle) error {
		off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(off)
		return err
	})
}

// CopyFileRange copies between two open files on the host.
func (f *fileSystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if in.OffIn > 1<<63-1 || in.OffOut > 1<<63-1 || in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	to := f.handle(in.FhOut)
	if to == nil {
		return 0, fuse.EBADF
	}
	defer f.putHandle(to)
	defer f.events.file(to.node, content)()
	var n int
	code := f.withFile(in.FhIn, func(h *handle) (err error) {
		from, at := int64(in.OffIn), int64(in.OffOut)
		n, err = unix.CopyFileRange(h.fd, &from, to.fd, &at, int(min(in.Len, 1<<30)), 0)
		return err
	})
	return uint32(max(n, 0)), code
}
