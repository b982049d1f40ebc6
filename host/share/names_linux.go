package share

import (
	"errors"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// made records what the guest gave a new inode, which the caller holds, and
// fills st. A directory with setgid hands its group down.
func (f *fileSystem) made(p, n *node, st *unix.Stat_t, who fuse.Caller, mode uint32) error {
	defer f.events.file(n, attributes)()
	n.made.Store(time.Now().UnixNano())
	o := owner(noRecord(), who)
	if dir := p.record(); dir.gid != unset && dir.mode != unset && dir.mode&unix.S_ISGID != 0 {
		o.Gid = dir.gid
		if n.isDir() {
			mode |= unix.S_ISGID
		}
	}
	return n.setRecord(record{uid: o.Uid, gid: o.Gid, mode: mode & 0o7777, hostMode: st.Mode & 0o7777})
}

// enter tells the guest of the entry that it has just made.
func (f *fileSystem) enter(p *node, name string, who fuse.Caller, mode uint32, out *fuse.EntryOut) fuse.Status {
	var st unix.Stat_t
	n, err := f.child(p, name, &st)
	if err != nil {
		return status(err)
	}
	defer f.put(n)
	if err := f.made(p, n, &st, who, mode); err != nil {
		return status(err)
	}
	return f.entry(n, &st, who, out)
}

// Mkdir makes a directory.
func (f *fileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	p, code := f.changeIn(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	end := f.events.names(p.change(name, unix.IN_CREATE))
	err := retry(func() error { return unix.Mkdirat(p.fd, name, onHost(in.Mode, true)) })
	end(err)
	if err != nil {
		return status(err)
	}
	return f.enter(p, name, in.Caller, in.Mode, out)
}

// Mknod makes a file, a FIFO or a socket; no devices.
func (f *fileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	p, code := f.changeIn(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	kind := in.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, 0:
	default:
		return fuse.EPERM
	}
	end := f.events.names(p.change(name, unix.IN_CREATE))
	err := retry(func() error { return unix.Mknodat(p.fd, name, kind|onHost(in.Mode, false), 0) })
	end(err)
	if err != nil {
		return status(err)
	}
	return f.enter(p, name, in.Caller, in.Mode, out)
}

// Symlink makes a symbolic link.
func (f *fileSystem) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	p, code := f.changeIn(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	end := f.events.names(p.change(name, unix.IN_CREATE))
	err := retry(func() error { return unix.Symlinkat(target, p.fd, name) })
	if end(err); err != nil {
		return status(err)
	}
	return f.enter(p, name, in.Caller, 0o777, out)
}

// Readlink reads a symbolic link, which the guest resolves.
func (f *fileSystem) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return nil, code
	}
	defer f.put(n)
	if n.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// Link gives an inode another name in the same volume.
func (f *fileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	p, code := f.changeIn(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	n, code := f.use(in.Oldnodeid)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	if n.vol != p.vol {
		return fuse.EXDEV
	}
	defer f.events.file(n, 0)()
	end := f.events.names(p.change(name, unix.IN_CREATE))
	err := retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, n.proc, p.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
	if end(err); err != nil {
		return status(err)
	}
	f.named(n, p, name)
	var st unix.Stat_t
	if err := fstat(n.fd, &st); err != nil {
		return status(err)
	}
	return f.entry(n, &st, in.Caller, out)
}

// Unlink removes a name that is no directory's.
func (f *fileSystem) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, 0)
}

// Rmdir removes an empty directory.
func (f *fileSystem) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in.NodeId, name, unix.AT_REMOVEDIR)
}

func (f *fileSystem) remove(id uint64, name string, flags int) fuse.Status {
	p, code := f.changeIn(id, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	n, code := f.target(p, name)
	if !code.Ok() {
		return code
	}
	defer f.putAny(n)
	defer f.events.file(n, 0)()
	end := f.events.names(p.change(name, unix.IN_DELETE))
	err := retry(func() error { return unix.Unlinkat(p.fd, name, flags) })
	end(err)
	if err == nil && n != nil {
		f.named(n, nil, "")
	}
	return status(err)
}

// Rename moves an entry within its volume; the flags are those of renameat2.
func (f *fileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if in.Flags&^uint32(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	p, code := f.changeIn(in.NodeId, from)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	q, code := f.changeIn(in.Newdir, to)
	if !code.Ok() {
		return code
	}
	defer f.put(q)
	if p.vol != q.vol {
		return fuse.EXDEV
	}
	moved, code := f.target(p, from)
	if !code.Ok() {
		return code
	}
	defer f.putAny(moved)
	covered, code := f.target(q, to)
	if !code.Ok() {
		return code
	}
	defer f.putAny(covered)
	// A new name changes ctime, by which changes of the host are told.
	defer f.events.file(moved, 0)()
	defer f.events.file(covered, 0)()
	var changes []change
	if moved == nil || moved != covered { // else there is nothing to do, nor an event
		changes = append(changes, p.change(from, unix.IN_MOVED_FROM), q.change(to, unix.IN_MOVED_TO))
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 && len(changes) > 0 {
		changes = append(changes, q.change(to, unix.IN_MOVED_FROM), p.change(from, unix.IN_MOVED_TO))
	}
	end := f.events.names(changes...)
	err := retry(func() error { return unix.Renameat2(p.fd, from, q.fd, to, uint(in.Flags)) })
	end(err)
	if err != nil || moved == covered {
		return status(err)
	}
	switch {
	case covered == nil:
	case in.Flags&unix.RENAME_EXCHANGE != 0:
		f.named(covered, p, from)
	default:
		f.named(covered, nil, "")
	}
	if moved != nil {
		f.named(moved, q, to)
	}
	return fuse.OK
}

// Create makes a file and opens it, or opens one that turned up meanwhile.
func (f *fileSystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p, code := f.changeIn(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	// Only O_EXCL says who made the file, and never opens a FIFO or device
	// that somebody on the host has put there.
	flags := hostFlags(in.Flags)&^unix.O_TRUNC | unix.O_CREAT | unix.O_EXCL
	end := f.events.names(p.change(name, unix.IN_CREATE))
	fd, err := openat(p.fd, name, flags, onHost(in.Mode, false))
	end(err)
	if errors.Is(err, unix.EEXIST) && in.Flags&unix.O_EXCL == 0 {
		return f.openEntry(p, name, in, out)
	}
	if err != nil {
		return status(err)
	}
	return f.created(p, name, fd, in, out)
}

// Tmpfile makes a file without a name in a directory.
func (f *fileSystem) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	p, code := f.change(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(p)
	if !p.isDir() {
		return fuse.ENOTDIR
	}
	flags := hostFlags(in.Flags)&^unix.O_TRUNC | unix.O_TMPFILE | int(in.Flags&unix.O_EXCL)
	fd, err := openat(unix.AT_FDCWD, p.proc, flags, onHost(in.Mode, false))
	if err != nil {
		return status(err)
	}
	return f.created(p, "", fd, in, out)
}

// created answers for the new file behind fd, which it takes over. The name is
// empty where it has none.
func (f *fileSystem) created(p *node, name string, fd int, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	path, err := openat(unix.AT_FDCWD, procPath(fd), unix.O_PATH, 0)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	var st unix.Stat_t
	at := p
	if name == "" {
		at = nil
	}
	n, err := f.adopt(p.vol, path, &st, at, name)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	defer f.put(n)
	if err := f.made(p, n, &st, in.Caller, in.Mode); err != nil {
		unix.Close(fd)
		return status(err)
	}
	if out.Fh, err = f.open(n, fd, nil); err != nil {
		return status(err)
	}
	if code := f.entry(n, &st, in.Caller, &out.EntryOut); !code.Ok() {
		f.release(out.Fh)
		return code
	}
	out.OpenFlags |= appendFlags(int(in.Flags))
	return fuse.OK
}

// openEntry is Create for a file that exists.
func (f *fileSystem) openEntry(p *node, name string, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	var st unix.Stat_t
	n, err := f.child(p, name, &st)
	if err != nil {
		return status(err)
	}
	defer f.put(n)
	if code := f.openFile(n, in.Flags, false, &out.OpenOut); !code.Ok() {
		return code
	}
	err = fstat(n.fd, &st) // O_TRUNC may have changed it
	code := status(err)
	if code.Ok() {
		code = f.entry(n, &st, in.Caller, &out.EntryOut)
	}
	if !code.Ok() {
		f.release(out.Fh)
	}
	return code
}
