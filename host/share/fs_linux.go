package share

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileSystem carries out FUSE requests on the host's files. What is not here
// answers ENOSYS: locks, ioctl, poll and access stay in the guest's kernel.
type fileSystem struct {
	fuse.RawFileSystem
	*table
	exports   *exports // the root directory; nil when the root is a node
	root      *node    // held; nil with exports
	forbidden []fileID
	events    *events // nil: the guest isn't told of the host's changes
	log       *slog.Logger

	devMu sync.Mutex
	devs  map[uint64]uint64 // host's device to the number that tells inodes apart
}

// fileID tells an inode of the host from all others.
type fileID struct{ dev, ino uint64 }

// volume is what all nodes below one root have in common.
type volume struct {
	readOnly bool
	// frozen: the guest sees the host's modes, all owned by root, and may
	// cache everything for long.
	frozen bool
	// name in the root, where that has one per export.
	name string
	// file: the root is no directory, and stays when its name changes.
	file   bool
	closed atomic.Bool // withdrawn
}

const (
	// dirTimeout is for how long the guest may use a directory's name and
	// attributes without asking.
	dirTimeout = time.Second
	// fileTimeout is the same for the attributes of files. Their names are
	// looked up at nearly each use, which brings new attributes, so it counts
	// only for what is open.
	fileTimeout = 100 * time.Millisecond
	// ownTimeout is for how long the guest may use the name of a file that it
	// has made just now without asking: who unpacks an archive names each file
	// five times in a row (chown, chmod, utimes …).
	ownTimeout = 250 * time.Millisecond
	// largeTimeout is the same for a file of at least largeFile bytes. The guest
	// rounds it up to a tick of its clock (4 ms), and begins at the next. With
	// nothing it forgets a file at each close (delete_stale, in the kernel's
	// fs/fuse/dir.c): whoever closes a large one waits until all that is cached of
	// it is freed (0.3 ms for each MiB, under emulation), and who opens it next has
	// it read once more.
	largeTimeout = time.Millisecond
	largeFile    = 16 << 20
	// listTimeout is for how long it may use the names and attributes of a
	// list: what lists a folder most likely asks for its files next.
	listTimeout = 250 * time.Millisecond
	// frozenTimeout is for what doesn't change.
	frozenTimeout = time.Hour
)

func newFileSystem(maxFiles int, log *slog.Logger) *fileSystem {
	if maxFiles <= 0 {
		maxFiles = defaultMaxFiles()
	}
	return &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		table:         newTable(maxFiles),
		log:           log,
		devs:          map[uint64]uint64{},
	}
}

// defaultMaxFiles is half of the process's descriptors: the image store's share
// takes an eighth, the rest is for the daemon itself. The Go runtime has raised
// the limit to the highest allowed.
func defaultMaxFiles() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < 64 {
		return 32
	}
	return int(min(lim.Cur, 1<<20) / 2)
}

// String names the file system in the guest's table of mounts.
func (f *fileSystem) String() string { return "sampan" }

// retire takes everything from the guest.
func (f *fileSystem) retire() {
	f.withdraw(func(*node) bool { return true })
	if f.root != nil {
		f.put(f.root)
	}
	f.events.close()
}

// use holds the node of a request. What the guest can't name any more is stale.
func (f *fileSystem) use(id uint64) (*node, fuse.Status) {
	n, err := f.node(id)
	if n != nil || err != nil {
		return n, status(err)
	}
	if id == fuse.FUSE_ROOT_ID && f.exports != nil {
		return nil, fuse.EROFS
	}
	return nil, fuse.Status(unix.ESTALE)
}

// change is use for a request that writes.
func (f *fileSystem) change(id uint64) (*node, fuse.Status) {
	n, st := f.use(id)
	if st.Ok() && n.vol.readOnly {
		f.put(n)
		return nil, fuse.EROFS
	}
	return n, st
}

// changeIn is change for a request that names an entry of a directory.
func (f *fileSystem) changeIn(id uint64, name string) (*node, fuse.Status) {
	if st := checkName(name); !st.Ok() {
		return nil, st
	}
	n, st := f.change(id)
	if st.Ok() && !n.isDir() {
		f.put(n)
		return nil, fuse.ENOTDIR
	}
	return n, st
}

// checkName lets only one step down pass.
func checkName(name string) fuse.Status {
	switch {
	case name == "" || name == "." || name == "..", strings.ContainsAny(name, "/\x00"):
		return fuse.EINVAL
	case len(name) > 255:
		return fuse.Status(unix.ENAMETOOLONG)
	}
	return fuse.OK
}

// status is the guest's error for one of the host.
func status(err error) fuse.Status {
	var errno unix.Errno
	switch {
	case err == nil:
		return fuse.OK
	case !errors.As(err, &errno):
		return fuse.EIO
	case errno == unix.EMFILE:
		return fuse.Status(unix.ENFILE)
	case errno == unix.ENOSYS: // would switch the request off for good
		return fuse.ENOTSUP
	}
	return fuse.Status(errno)
}

// child holds the node of an entry of p. Never follows a link.
func (f *fileSystem) child(p *node, name string, st *unix.Stat_t) (*node, error) {
	if err := fstatat(p.fd, name, st); err != nil {
		return nil, err
	}
	n, err := f.find(f.key(p.vol, st), p, name)
	if n != nil || err != nil && !errors.Is(err, unix.ESTALE) {
		return n, err
	}
	fd, err := openat(p.fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return f.adopt(p.vol, fd, st, p, name)
}

// adopt makes a held node of a descriptor, which it takes over, and fills st.
// It was opened as name in p; p is nil where it can't be opened so again.
func (f *fileSystem) adopt(vol *volume, fd int, st *unix.Stat_t, p *node, name string) (*node, error) {
	if err := fstat(fd, st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if isForbidden(f.forbidden, st) {
		unix.Close(fd)
		return nil, unix.EACCES
	}
	n, err := f.add(f.key(vol, st), st.Mode&unix.S_IFMT, fd, p, name)
	if err == nil && n.watchable() && !vol.frozen {
		f.events.watch(n)
	}
	return n, err
}

// watchable tells whether the guest can be told of changes by it: of the files in
// a directory, or of a file that is shared by itself.
func (n *node) watchable() bool { return n.isDir() || n.vol.file && n.kind == unix.S_IFREG }

func (f *fileSystem) key(vol *volume, st *unix.Stat_t) nodeKey {
	return nodeKey{vol: vol, dev: uint64(st.Dev), ino: st.Ino}
}

func isForbidden(ids []fileID, st *unix.Stat_t) bool {
	for _, id := range ids {
		if id == (fileID{uint64(st.Dev), st.Ino}) {
			return true
		}
	}
	return false
}

// target holds the node of an entry that is about to lose its name: it can't be
// opened by it any more. nil when the guest doesn't know it. What is forbidden
// can't be moved or removed.
func (f *fileSystem) target(p *node, name string) (*node, fuse.Status) {
	var st unix.Stat_t
	if fstatat(p.fd, name, &st) != nil {
		return nil, fuse.OK // the host says what is wrong
	}
	if isForbidden(f.forbidden, &st) {
		return nil, fuse.EACCES
	}
	n, err := f.find(f.key(p.vol, &st), p, name)
	if errors.Is(err, unix.ESTALE) { // another inode
		err = nil
	}
	return n, status(err)
}

// putAny is put for what may be nil.
func (f *fileSystem) putAny(n *node) {
	if n != nil {
		f.put(n)
	}
}

// inode is the number that the guest sees: the host's, and for all but the
// first of the host's file systems a mark in the upper bits, so that programs
// that tell files apart by it (tar, du) don't take two for one.
func (f *fileSystem) inode(dev, ino uint64) uint64 {
	f.devMu.Lock()
	defer f.devMu.Unlock()
	i, ok := f.devs[dev]
	if !ok {
		i = uint64(len(f.devs))
		f.devs[dev] = i
	}
	return ino ^ i<<56
}

// Lookup finds an entry of a directory, or an export.
func (f *fileSystem) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if st := checkName(name); !st.Ok() {
		return st
	}
	var st unix.Stat_t
	var n *node
	var err error
	if in.NodeId == fuse.FUSE_ROOT_ID && f.exports != nil {
		n, err = f.exports.lookup(f, name, &st)
	} else {
		p, code := f.use(in.NodeId)
		if !code.Ok() {
			return code
		}
		defer f.put(p)
		if !p.isDir() {
			return fuse.ENOTDIR
		}
		n, err = f.child(p, name, &st)
	}
	if err != nil {
		return status(err)
	}
	defer f.put(n)
	return f.entry(n, &st, in.Caller, out)
}

// entry tells the guest of n.
func (f *fileSystem) entry(n *node, st *unix.Stat_t, who fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if !f.remember(n) {
		return fuse.Status(unix.ESTALE)
	}
	out.NodeId = n.id
	out.Generation = 1
	f.attributes(n, st, n.record(), who, &out.Attr)
	switch {
	case n.vol.frozen:
		out.SetEntryTimeout(frozenTimeout)
	case n.isDir():
		out.SetEntryTimeout(dirTimeout)
	case time.Since(time.Unix(0, n.made.Load())) < ownTimeout:
		out.SetEntryTimeout(ownTimeout)
	case st.Size >= largeFile:
		out.SetEntryTimeout(largeTimeout)
	}
	out.SetAttrTimeout(n.attrTimeout())
	return fuse.OK
}

func (n *node) attrTimeout() time.Duration {
	switch {
	case n.vol.frozen:
		return frozenTimeout
	case n.isDir():
		return dirTimeout
	case n.vol.file:
		return 0 // the guest has it mounted: there is no name to look up
	}
	return fileTimeout
}

// Forget takes back what Lookup and its like gave out.
func (f *fileSystem) Forget(id, count uint64) { f.forget(id, count) }

// StatFs describes the host's file system under a node.
func (f *fileSystem) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID && f.exports != nil {
		*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
		return fuse.OK
	}
	n, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.put(n)
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(n.fd, &st) }); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: uint32(st.Namelen),
	}
	return fuse.OK
}

// syncAll brings everything that the guest may have written to the disk.
func (f *fileSystem) syncAll() fuse.Status {
	code := fuse.OK
	for _, n := range f.perDevice() {
		// Not even readable means that nothing of it can be open either.
		if fd, err := openat(unix.AT_FDCWD, n.proc, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			if err := unix.Syncfs(fd); err != nil && code.Ok() {
				code = status(err)
			}
			unix.Close(fd)
		}
		f.put(n)
	}
	return code
}
