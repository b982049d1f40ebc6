package share

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// record is what the guest has set on n.
func (n *node) record() record {
	if n.vol.frozen {
		return noRecord()
	}
	if r := n.memory.Load(); r != nil {
		return *r
	}
	if !n.hasAttrs() {
		return noRecord()
	}
	var buf [maxRecord]byte
	size, err := unix.Getxattr(n.proc, recordAttr, buf[:])
	if err != nil {
		return noRecord() // none, unreadable, or longer than any of ours
	}
	r, err := parseRecord(buf[:size])
	if err != nil {
		return noRecord()
	}
	return r
}

// setRecord keeps r with the file, or in memory where the file can't carry it.
func (n *node) setRecord(r record) error {
	if n.hasAttrs() && n.memory.Load() == nil {
		var buf [maxRecord]byte
		text := r.append(buf[:0])
		err := retry(func() error { return unix.Setxattr(n.proc, recordAttr, text, 0) })
		if !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	n.memory.Store(&r)
	return nil
}

// attributes fills in what the guest sees of n.
func (f *fileSystem) attributes(n *node, st *unix.Stat_t, r record, who fuse.Caller, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: f.inode(n.dev, n.ino), Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
	if n.vol.frozen {
		return // owned by root
	}
	out.Mode = n.kind | r.visible(st.Mode&0o7777)
	if f.events.replaying(who) { // nobody looks
		told := n.told.Load()
		who.Uid, who.Gid = uint32(told>>32), uint32(told)
	} else {
		n.told.Store(uint64(who.Uid)<<32 | uint64(who.Gid))
	}
	out.Owner = owner(r, who)
}

// owner is whom a file with a record belongs to, as a caller sees it.
func owner(r record, who fuse.Caller) fuse.Owner {
	o := fuse.Owner{Uid: r.uid, Gid: r.gid}
	if o.Uid == unset {
		o.Uid = who.Uid
	}
	if o.Gid == unset {
		o.Gid = who.Gid
	}
	// The kernel itself, or an id that it can't map.
	if o.Uid == unset {
		o.Uid = 0
	}
	if o.Gid == unset {
		o.Gid = 0
	}
	return o
}

// GetAttr describes a node.
func (f *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID && f.exports != nil {
		f.exports.attributes(&out.Attr)
		out.SetTimeout(dirTimeout)
		return fuse.OK
	}
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	return f.reply(n, n.record(), in.Caller, out)
}

func (f *fileSystem) reply(n *node, r record, who fuse.Caller, out *fuse.AttrOut) fuse.Status {
	var st unix.Stat_t
	if err := fstat(n.fd, &st); err != nil {
		return status(err)
	}
	f.attributes(n, &st, r, who, &out.Attr)
	out.SetTimeout(n.attrTimeout())
	return fuse.OK
}

// SetAttr changes owner, mode, size and times, in this order.
func (f *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := f.change(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	what := attributes
	if in.Valid&(fuse.FATTR_SIZE|fuse.FATTR_MTIME) != 0 {
		what |= content
	}
	defer f.events.file(n, what)()
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_MODE|fuse.FATTR_KILL_SUIDGID) != 0 {
		if err := f.setOwnerAndMode(n, in); err != nil {
			return status(err)
		}
	}
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(n, in, size); err != nil {
			return status(err)
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		if err := setTimes(n, in); err != nil {
			return status(err)
		}
	}
	return f.reply(n, n.record(), in.Caller, out)
}

func (f *fileSystem) setOwnerAndMode(n *node, in *fuse.SetAttrIn) error {
	var st unix.Stat_t
	if err := fstat(n.fd, &st); err != nil {
		return err
	}
	r := n.record()
	host := st.Mode & 0o7777
	mode := r.visible(host)
	own := in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0
	if own {
		o := owner(r, in.Caller) // an owner is recorded whole
		if uid, ok := in.GetUID(); ok {
			o.Uid = uid
		}
		if gid, ok := in.GetGID(); ok {
			o.Gid = gid
		}
		r.uid, r.gid = o.Uid, o.Gid
	}
	if !n.isDir() && (own || in.Valid&fuse.FATTR_KILL_SUIDGID != 0) {
		mode = withoutSetID(mode)
	}
	chmod := in.Valid&fuse.FATTR_MODE != 0
	if chmod {
		mode = in.Mode & 0o7777
	}
	return n.setMode(r, host, mode, chmod)
}

// setMode gives n the guest's mode, and the owner of r. The host's mode follows
// only a chmod.
func (n *node) setMode(r record, host, mode uint32, chmod bool) error {
	if n.kind == unix.S_IFLNK {
		if chmod {
			return unix.EOPNOTSUPP
		}
	} else if want := onHost(mode, n.isDir()); chmod && want != host {
		if err := n.chmod(want); err != nil {
			return err
		}
		host = want
	}
	if r.uid == unset && r.mode == unset && mode == host && mode&0o6000 == 0 {
		return nil // the file tells it all
	}
	r.mode, r.hostMode = mode, host
	err := n.setRecord(r)
	if errors.Is(err, unix.EACCES) && n.hasAttrs() {
		// The host's mode keeps its owner from writing the attribute.
		r.hostMode = onHost(host, n.isDir())
		if n.chmod(r.hostMode) == nil {
			err = n.setRecord(r)
		}
	}
	return err
}

func (n *node) chmod(mode uint32) error {
	return retry(func() error { return unix.Chmod(n.proc, mode) })
}

// killSetID drops setuid and setgid when the content changes.
func (f *fileSystem) killSetID(n *node) error {
	var st unix.Stat_t
	if err := fstat(n.fd, &st); err != nil {
		return err
	}
	r, host := n.record(), st.Mode&0o7777
	mode := r.visible(host)
	if mode&0o6000 == 0 || n.isDir() {
		return nil
	}
	defer f.events.file(n, attributes)()
	return n.setMode(r, host, withoutSetID(mode), false)
}

func (f *fileSystem) truncate(n *node, in *fuse.SetAttrIn, size uint64) error {
	if n.kind != unix.S_IFREG || size > 1<<63-1 {
		return unix.EINVAL
	}
	if id, ok := in.GetFh(); ok {
		if h := f.handle(id); h != nil {
			defer f.putHandle(h)
			if h.node == n {
				err := retry(func() error { return unix.Ftruncate(h.fd, int64(size)) })
				if !errors.Is(err, unix.EINVAL) { // not open for writing
					return err
				}
			}
		}
	}
	return retry(func() error { return unix.Truncate(n.proc, int64(size)) })
}

func setTimes(n *node, in *fuse.SetAttrIn) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		ts[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
		if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
			ts[0] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		ts[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
		if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
			ts[1] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	return retry(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, n.proc, ts, 0) })
}
