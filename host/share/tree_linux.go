package share

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"sampan/vm"
)

// A Tree is a file system with a root of its own: one entry per exported host
// path. Its methods may be called from several goroutines, and while a guest
// uses it.
type Tree struct {
	opts      Options
	forbidden []fileID
	server    *server
	exports   *exports
	count     counters
}

// NewTree makes a Tree that exports nothing.
func NewTree(opts Options) *Tree {
	t := &Tree{opts: opts, exports: &exports{byName: map[string]*exported{}, made: time.Now()}}
	for _, path := range opts.Forbidden {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			t.forbidden = append(t.forbidden, fileID{uint64(st.Dev), st.Ino})
		}
	}
	t.server = newServer(func() *fileSystem {
		f := newFileSystem(opts.MaxFiles, opts.log())
		f.exports, f.forbidden = t.exports, t.forbidden
		if opts.Replays != nil {
			f.events = newEvents(f, opts, &t.count)
		}
		return f
	}, opts.log())
	return t
}

// Server answers the guest's requests. After a restart the guest may go on with
// the same one: its first request makes all that it held before void.
func (t *Tree) Server() vm.FUSEServer { return t.server }

// Events tells what became of the host's changes, in all boots together.
func (t *Tree) Events() Events { return t.count.events() }

// Close ends what runs for the Tree. What was exported must have been closed.
func (t *Tree) Close() error {
	t.server.fs().retire()
	return nil
}

// An Export is a host path that the guest can reach.
type Export struct {
	tree *Tree
	e    *exported
	once sync.Once
}

// Name is the export's entry in the root: one path element, the same for all
// that are open at one time of one path with the same access.
func (e *Export) Name() string { return e.e.name }

// Close withdraws the path, unless another Export of it is open: it is gone at
// once, also for files that the guest has open. Idempotent.
func (e *Export) Close() error {
	e.once.Do(func() { e.tree.withdraw(e.e) })
	return nil
}

// Export makes a directory, file or socket reachable. Symbolic links in
// hostPath are resolved now, and never again. The error wraps fs.ErrNotExist,
// ErrForbidden, or what the host says.
func (t *Tree) Export(hostPath string, readOnly bool) (*Export, error) {
	if !filepath.IsAbs(hostPath) {
		return nil, fmt.Errorf("export %s: not an absolute path", hostPath)
	}
	fd, path, err := openExport(hostPath)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", hostPath, err)
	}
	var st unix.Stat_t
	if err = fstat(fd, &st); err == nil {
		err = t.checkForbidden(fd, path, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("export %s: %w", hostPath, err)
	}
	vol := &volume{readOnly: readOnly, file: st.Mode&unix.S_IFMT != unix.S_IFDIR}
	e := t.exports.add(exported{
		key: exportKey(path, readOnly), id: fileID{uint64(st.Dev), st.Ino}, fd: fd, vol: vol,
	})
	return &Export{tree: t, e: e}, nil
}

// openExport opens what a path names, and returns the path without links.
func openExport(path string) (fd int, real string, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	// Somebody may put a link into the path between the two steps; then it is
	// resolved once more.
	for range 8 {
		if real, err = filepath.EvalSymlinks(path); err != nil {
			return -1, "", err
		}
		err = retry(func() error { fd, err = unix.Openat2(unix.AT_FDCWD, real, &how); return err })
		if !errors.Is(err, unix.ELOOP) {
			break
		}
	}
	return fd, real, err
}

// checkForbidden refuses what lies in a forbidden directory, by its path and by
// the directories that are really above it.
func (t *Tree) checkForbidden(fd int, path string, dir bool) error {
	for _, f := range t.opts.Forbidden {
		if real, err := filepath.EvalSymlinks(f); err == nil {
			f = real
		}
		if path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/") {
			return fmt.Errorf("%w: it is in %s", ErrForbidden, f)
		}
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	if isForbidden(t.forbidden, &st) {
		return ErrForbidden
	}
	at := filepath.Dir(path)
	from := unix.AT_FDCWD
	if dir {
		from, at = fd, ".."
	}
	return t.checkAbove(from, at, st)
}

// checkAbove walks from a directory up to the root.
func (t *Tree) checkAbove(from int, name string, last unix.Stat_t) error {
	if len(t.forbidden) == 0 {
		return nil
	}
	at, err := openat(from, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	for range unix.PathMax {
		if errors.Is(err, unix.EACCES) {
			return nil // nor can the guest go there
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = fstat(at, &st)
		if err == nil && isForbidden(t.forbidden, &st) {
			err = ErrForbidden
		}
		if err != nil || st.Dev == last.Dev && st.Ino == last.Ino {
			unix.Close(at)
			return err
		}
		last = st
		up, openErr := openat(at, "..", unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(at)
		at, err = up, openErr
	}
	return unix.ELOOP
}

// exportKey tells which exports are the same.
func exportKey(path string, readOnly bool) string {
	sum := sha256.Sum256([]byte(path + "\x00" + strconv.FormatBool(readOnly)))
	return hex.EncodeToString(sum[:10])
}

// exportName is never used again, not even for the same path: the guest may
// remember a directory for a second, and would find the old one's files stale.
func exportName(key string, seq uint64) string { return key + "." + strconv.FormatUint(seq, 10) }

func (t *Tree) withdraw(e *exported) {
	if !t.exports.remove(e) {
		return
	}
	e.vol.closed.Store(true)
	t.server.fs().withdraw(func(n *node) bool { return n.vol == e.vol })
	unix.Close(e.fd)
}

// exports is the root directory of a Tree.
type exports struct {
	mu     sync.Mutex
	byName map[string]*exported
	last   uint64
	made   time.Time
}

// exported is an entry of the root.
type exported struct {
	key  string // of the path and the access
	name string
	id   fileID
	fd   int // O_PATH
	vol  *volume
	seq  uint64 // place in the directory
	refs int    // Exports
}

// add returns the entry for e, which may be an older one of the same inode; it
// takes over e's descriptor.
func (x *exports) add(e exported) *exported {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, old := range x.byName {
		if old.key == e.key && old.id == e.id {
			unix.Close(e.fd)
			old.refs++
			return old
		}
	}
	x.last++
	e.name = exportName(e.key, x.last)
	e.vol.name = e.name
	e.seq, e.refs = x.last, 1
	x.byName[e.name] = &e
	return &e
}

// remove drops a reference; true when it was the last.
func (x *exports) remove(e *exported) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.refs--; e.refs > 0 {
		return false
	}
	delete(x.byName, e.name)
	return true
}

// lookup holds the node of an export.
func (x *exports) lookup(f *fileSystem, name string, st *unix.Stat_t) (*node, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byName[name]
	if e == nil {
		return nil, unix.ENOENT
	}
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return f.adopt(e.vol, fd, st, nil, "")
}

// list gives the entries after an offset until add says that it is full.
func (x *exports) list(off uint64, add func(fuse.DirEntry) bool) {
	x.mu.Lock()
	entries := make([]*exported, 0, len(x.byName))
	for _, e := range x.byName {
		if e.seq > off {
			entries = append(entries, e)
		}
	}
	x.mu.Unlock()
	sort.Slice(entries, func(i, j int) bool { return entries[i].seq < entries[j].seq })
	for _, e := range entries {
		kind := uint32(unix.S_IFDIR)
		if e.vol.file {
			kind = unix.S_IFREG
		}
		if !add(fuse.DirEntry{Name: e.name, Mode: kind, Ino: e.id.ino, Off: e.seq}) {
			return
		}
	}
}

func (x *exports) attributes(out *fuse.Attr) {
	sec, nsec := uint64(x.made.Unix()), uint32(x.made.Nanosecond())
	*out = fuse.Attr{
		Ino: fuse.FUSE_ROOT_ID, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Blksize: 4096,
		Atime: sec, Atimensec: nsec, Mtime: sec, Mtimensec: nsec, Ctime: sec, Ctimensec: nsec,
	}
}

// ReadOnlyDir serves one directory, whose files don't change once they have
// their name: the guest sees the host's modes and root as the owner, and caches
// all it has seen; new names show at once. Anything that writes gets EROFS. The
// closer ends it: the guest then gets ESTALE.
func ReadOnlyDir(path string) (vm.FUSEServer, io.Closer, error) {
	fd, _, err := openExport(path)
	if err != nil {
		return nil, nil, fmt.Errorf("serve %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("serve %s: %w", path, unix.ENOTDIR)
	}
	d := &readOnlyDir{fd: fd, vol: &volume{readOnly: true, frozen: true}}
	d.server = newServer(d.fileSystem, Options{}.log())
	if d.server.fs().root == nil {
		return nil, nil, errors.Join(fmt.Errorf("serve %s: no descriptors left", path), d.Close())
	}
	return d.server, d, nil
}

// readOnlyDir is what ReadOnlyDir serves.
type readOnlyDir struct {
	once   sync.Once
	fd     int // O_PATH
	vol    *volume
	server *server
}

// fileSystem has the directory as its root; once that is closed, none.
func (d *readOnlyDir) fileSystem() *fileSystem {
	// A layer is one inode and at most a few open files.
	f := newFileSystem(defaultMaxFiles()/4, Options{}.log())
	if d.vol.closed.Load() {
		return f
	}
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f
	}
	f.last = fuse.FUSE_ROOT_ID - 1 // the first node gets the root's id
	var st unix.Stat_t
	f.root, _ = f.adopt(d.vol, fd, &st, nil, "")
	return f
}

// Close takes the directory from the guest. Idempotent.
func (d *readOnlyDir) Close() error {
	d.once.Do(func() {
		d.vol.closed.Store(true)
		d.server.restart() // with no root
		unix.Close(d.fd)
	})
	return nil
}
