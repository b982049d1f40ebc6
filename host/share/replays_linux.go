package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"sampan/proto"
)

// replays answers the requests of the agent's thread that replays the host's
// changes, and passes all others on. It changes nothing on the host.
//
// The guest's kernel raises an event when an operation succeeds, which needs a
// past that is no more: what is being made is not there yet, what is being
// removed still is. So while an op is under way its name is looked up as it was.
// Whether it may be told is decided with the operation itself, at which time the
// guest's kernel has its directory locked: no process of the guest is changing
// it. A name that has come into being must still be there, and one that has gone
// must still be gone, or an op must follow that tells of the rest; otherwise
// the guest has changed it itself since, and knows better.
type replays struct{ *fileSystem }

const rootID = fuse.FUSE_ROOT_ID

// replayMay tells which requests the thread may make: those that are answered
// below, and those that only look.
func replayMay(opcode uint32) bool {
	switch opcode {
	case 1, opForget, 3, 4, 5, 6, 8, 9, 10, 11, 12, 14, 17, 18, 27, 29, opBatchForget, 45:
		return true
	}
	return false
}

// replaying tells whether a request is the replaying thread's. A process of the
// guest can't pretend to be it: the kernel writes the number.
func (e *events) replaying(who fuse.Caller) bool {
	return e != nil && who.Pid != 0 && who.Pid == e.thread.Load()
}

// op is what a request replays: the thread has its number as its group. replay
// is false for all other requests.
func (f replays) op(who fuse.Caller) (o *op, replay bool) {
	e := f.events
	if !e.replaying(who) {
		return nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.queue.sent[who.Gid], true
}

// is tells whether a name in a directory, both as in a request, is that of k.
func (k entryKey) is(dir uint64, name string) bool {
	if k.dir == nil {
		return dir == rootID && name == elsewhere
	}
	return k.dir.id == dir && k.name == name
}

// later tells whether an op after o departs from k, or arrives at it.
func (f replays) later(o *op, k entryKey, is func(*op, entryKey) bool) bool {
	look := func() bool {
		f.events.mu.Lock()
		defer f.events.mu.Unlock()
		return f.events.queue.later(o, k, is)
	}
	if look() {
		return true
	}
	f.events.catchUp()
	return look()
}

// stat describes what is at k on the host now.
func (f replays) stat(k entryKey, st *unix.Stat_t) (p *node, there bool) {
	p, err := f.node(k.dir.id)
	if p == nil || err != nil {
		return nil, false
	}
	return p, fstatat(p.fd, k.name, st) == nil
}

// gone tells whether k is rightly told to have gone by o.
func (f replays) gone(o *op, k entryKey) bool {
	if k.dir == nil {
		return true
	}
	var st unix.Stat_t
	p, there := f.stat(k, &st)
	f.putAny(p)
	return !there || f.later(o, k, (*op).arrives)
}

// subject is what o removes or moves: what the guest knows by that name, or
// else what it has become, or else nothing in particular. It is the same for all
// requests of o, and held for the caller.
func (f replays) subject(o *op) *node {
	e := f.events
	e.mu.Lock()
	n := f.again(o.subject)
	e.mu.Unlock()
	if n != nil {
		return n
	}
	n = f.findSubject(o)
	e.mu.Lock()
	var spare *node
	switch {
	case o.over: // a guest that doesn't wait for answers
	case o.subject != nil: // or that asks twice at a time
		n, spare = f.again(o.subject), n
	default:
		o.subject = f.again(n)
	}
	e.mu.Unlock()
	f.putAny(spare)
	return n
}

func (f replays) findSubject(o *op) *node {
	isDir := o.mode == unix.S_IFDIR
	if o.dir != nil {
		if n := f.seen(o.dir, o.name); n != nil {
			if n.isDir() == isDir {
				return n
			}
			f.put(n)
		}
	}
	if o.to != nil {
		if n := f.present(o.dest(), func(kind uint32) bool { return (kind == unix.S_IFDIR) == isDir }); n != nil {
			return n
		}
	}
	vol := o.dir
	if vol == nil {
		vol = o.to
	}
	return f.past(vol.vol, o.mode)
}

// present holds the node of what is at k on the host now, if it is of the right
// kind.
func (f replays) present(k entryKey, right func(kind uint32) bool) *node {
	var st unix.Stat_t
	p, there := f.stat(k, &st)
	defer f.putAny(p)
	if !there || !right(st.Mode&unix.S_IFMT) {
		return nil
	}
	n, err := f.child(p, k.name, &st)
	if err != nil {
		return nil
	}
	return n
}

// tell answers with a node as it was when it had its name.
func (f replays) tell(n *node, who fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if !f.remember(n) {
		return fuse.Status(unix.ESTALE)
	}
	st := unix.Stat_t{Dev: n.dev, Ino: n.ino, Mode: n.kind | 0o755, Nlink: 1, Blksize: 4096}
	if h, err := f.node(n.id); err == nil && h != nil {
		fstat(h.fd, &st)
		f.put(h)
	}
	st.Nlink = max(st.Nlink, 1)
	out.NodeId = n.id
	out.Generation = 1
	f.attributes(n, &st, noRecord(), who, &out.Attr)
	return fuse.OK
}

// Lookup finds names as they were before the op.
func (f replays) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	o, replay := f.op(in.Caller)
	if o != nil {
		switch {
		case o.kind == proto.Replay_CREATE && o.from().is(in.NodeId, name):
			return fuse.ENOENT
		case o.kind == proto.Replay_DELETE && o.from().is(in.NodeId, name) && f.gone(o, o.from()),
			o.kind == proto.Replay_RENAME && o.from().is(in.NodeId, name):
			n := f.subject(o)
			defer f.put(n)
			return f.tell(n, in.Caller, out)
		case o.kind == proto.Replay_RENAME && o.dest().is(in.NodeId, name):
			return f.covered(o, in.Caller, out)
		}
	}
	if replay && in.NodeId == rootID && name == elsewhere {
		return fuse.ENOENT
	}
	return f.fileSystem.Lookup(cancel, in, name, out)
}

// covered is what the guest knows at the destination of a rename, if that is
// something else.
func (f replays) covered(o *op, who fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if o.to == nil {
		return fuse.ENOENT
	}
	n := f.seen(o.to, o.toName)
	if n == nil {
		return fuse.ENOENT
	}
	defer f.put(n)
	moved := f.subject(o)
	defer f.put(moved)
	if n == moved {
		return fuse.ENOENT
	}
	return f.tell(n, who, out)
}

// make answers a request that makes an entry.
func (f replays) make(o *op, dir uint64, name string, kind uint32, who fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if o == nil || o.kind != proto.Replay_CREATE || !o.from().is(dir, name) || o.mode != kind {
		return fuse.EPERM
	}
	n := f.present(o.from(), func(k uint32) bool { return k == kind })
	if n != nil {
		defer f.put(n)
		var st unix.Stat_t
		if err := fstat(n.fd, &st); err != nil {
			return status(err)
		}
		return f.entry(n, &st, who, out)
	}
	if !f.later(o, o.from(), (*op).departs) {
		o.refused.Store(true)
		return fuse.ENOENT
	}
	n = f.past(o.dir.vol, kind)
	defer f.put(n)
	f.named(n, o.dir, name)
	return f.tell(n, who, out)
}

// Mkdir tells of a directory.
func (f replays) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if o, replay := f.op(in.Caller); replay {
		return f.make(o, in.NodeId, name, unix.S_IFDIR, in.Caller, out)
	}
	return f.fileSystem.Mkdir(cancel, in, name, out)
}

// Mknod tells of a file, a FIFO or a socket.
func (f replays) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if o, replay := f.op(in.Caller); replay {
		return f.make(o, in.NodeId, name, in.Mode&unix.S_IFMT, in.Caller, out)
	}
	return f.fileSystem.Mknod(cancel, in, name, out)
}

// Symlink tells of a symbolic link.
func (f replays) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if o, replay := f.op(in.Caller); replay {
		return f.make(o, in.NodeId, name, unix.S_IFLNK, in.Caller, out)
	}
	return f.fileSystem.Symlink(cancel, in, target, name, out)
}

// remove answers a request that removes an entry.
func (f replays) remove(o *op, dir uint64, name string, isDir bool) fuse.Status {
	if o == nil || o.kind != proto.Replay_DELETE || !o.from().is(dir, name) || isDir != (o.mode == unix.S_IFDIR) {
		return fuse.EPERM
	}
	if !f.gone(o, o.from()) {
		o.refused.Store(true)
		return fuse.ENOENT
	}
	n := f.subject(o)
	defer f.put(n)
	f.named(n, nil, "")
	f.events.removed(o.from())
	if isDir {
		f.renew(n)
	}
	return fuse.OK
}

// Unlink tells that a name is gone.
func (f replays) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if o, replay := f.op(in.Caller); replay {
		return f.remove(o, in.NodeId, name, false)
	}
	return f.fileSystem.Unlink(cancel, in, name)
}

// Rmdir tells that a directory is gone.
func (f replays) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if o, replay := f.op(in.Caller); replay {
		return f.remove(o, in.NodeId, name, true)
	}
	return f.fileSystem.Rmdir(cancel, in, name)
}

// Rename tells that something has moved.
func (f replays) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	o, replay := f.op(in.Caller)
	if !replay {
		return f.fileSystem.Rename(cancel, in, from, to)
	}
	if o == nil || o.kind != proto.Replay_RENAME || !o.from().is(in.NodeId, from) || !o.dest().is(in.Newdir, to) {
		return fuse.EPERM
	}
	if !f.gone(o, o.from()) {
		return fuse.ENOENT
	}
	moved := f.subject(o)
	defer f.put(moved)
	f.events.removed(o.from())
	if o.to == nil {
		f.named(moved, nil, "")
		return fuse.OK
	}
	var st unix.Stat_t
	p, there := f.stat(o.dest(), &st)
	f.putAny(p)
	if !there && !f.later(o, o.dest(), (*op).departs) {
		return fuse.ENOENT
	}
	if n := f.seen(o.to, to); n != nil {
		if n != moved {
			f.named(n, nil, "")
		}
		f.put(n)
	}
	f.named(moved, o.to, to)
	return fuse.OK
}

// SetAttr tells that a file has changed.
func (f replays) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	o, replay := f.op(in.Caller)
	if !replay {
		return f.fileSystem.SetAttr(cancel, in, out)
	}
	if o == nil || o.kind != proto.Replay_MODIFY && o.kind != proto.Replay_ATTRIB {
		return fuse.EPERM
	}
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	return f.reply(n, n.record(), in.Caller, out)
}

// Open tells that a file was closed after writing, as soon as it is closed.
func (f replays) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	o, replay := f.op(in.Caller)
	switch {
	case !replay:
		return f.fileSystem.Open(cancel, in, out)
	case o == nil || o.kind != proto.Replay_WRITTEN:
		return fuse.EPERM
	}
	return fuse.OK // there is no handle 0, and no need of one
}
