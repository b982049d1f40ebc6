package share

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A node is an inode that the guest knows, or that a request works on. Its
// descriptor names the inode whatever happens to its name, and pins the inode
// number.
type node struct {
	nodeKey
	id   uint64
	fd   int    // O_PATH
	proc string // path that reopens fd
	kind uint32 // S_IFMT bits, which never change

	nlookup uint64 // by table.mu
	refs    int    // by table.mu: requests, handles, and one if nlookup > 0
	gone    bool   // by table.mu: its volume was withdrawn

	memory atomic.Pointer[record]    // what no attribute could hold
	sig    atomic.Pointer[signature] // of the last open
}

// nodeKey is what makes two names one node.
type nodeKey struct {
	vol      *volume
	dev, ino uint64
}

func (n *node) isDir() bool { return n.kind == unix.S_IFDIR }

// hasAttrs tells whether the inode can carry user.* attributes.
func (n *node) hasAttrs() bool { return n.kind == unix.S_IFREG || n.kind == unix.S_IFDIR }

// A handle is an open file or directory.
type handle struct {
	node   *node
	fd     int
	dir    *dirStream // nil for a file
	refs   int        // by table.mu: requests, and one while it is open
	closed bool       // by table.mu
}

// table holds the nodes and handles of one file system. A guest may forget an
// inode or close a file while another request uses it, so each request holds
// what it works on: a descriptor that was closed too soon could be another's by
// then.
type table struct {
	mu      sync.Mutex
	nodes   map[uint64]*node
	byKey   map[nodeKey]*node
	handles map[uint64]*handle
	last    uint64 // id given out last, to nodes and handles; never reused
	files   int    // descriptors held
	max     int
}

func newTable(maxFiles int) *table {
	return &table{
		nodes: map[uint64]*node{}, byKey: map[nodeKey]*node{}, handles: map[uint64]*handle{},
		last: fuse.FUSE_ROOT_ID, max: maxFiles,
	}
}

// node holds the node with an id for a request; nil when there is none.
func (t *table) node(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hold(t.nodes[id])
}

// find holds the node of an inode; nil when it isn't known.
func (t *table) find(k nodeKey) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hold(t.byKey[k])
}

func (t *table) hold(n *node) *node {
	if n != nil {
		n.refs++
	}
	return n
}

// add holds the node of an inode and takes over a descriptor of it.
func (t *table) add(k nodeKey, kind uint32, fd int) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[k]; n != nil {
		unix.Close(fd)
		return t.hold(n), nil
	}
	if t.files >= t.max {
		unix.Close(fd)
		return nil, unix.ENFILE
	}
	if k.vol.closed {
		unix.Close(fd)
		return nil, unix.ESTALE
	}
	t.last++
	n := &node{nodeKey: k, id: t.last, fd: fd, proc: procPath(fd), kind: kind, refs: 1}
	t.nodes[n.id] = n
	t.byKey[k] = n
	t.files++
	return n, nil
}

// remember counts that the guest is told of n, which its caller holds.
func (t *table) remember(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.gone {
		return false
	}
	if n.nlookup == 0 {
		n.refs++
	}
	n.nlookup++
	return true
}

// forget takes back count times remember.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || n.nlookup == 0 || count == 0 {
		return
	}
	n.nlookup -= min(count, n.nlookup)
	if n.nlookup == 0 {
		t.drop(n)
	}
}

// put ends a request's hold.
func (t *table) put(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(n)
}

func (t *table) drop(n *node) {
	n.refs--
	if n.refs > 0 {
		return
	}
	t.unlist(n)
	t.files--
	unix.Close(n.fd)
}

func (t *table) unlist(n *node) {
	delete(t.nodes, n.id)
	if t.byKey[n.nodeKey] == n {
		delete(t.byKey, n.nodeKey)
	}
}

// open takes over a descriptor of n as a new handle.
func (t *table) open(n *node, fd int, dir *dirStream) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.gone || t.files >= t.max {
		unix.Close(fd)
		if n.gone {
			return 0, unix.ESTALE
		}
		return 0, unix.ENFILE
	}
	t.last++
	t.files++
	t.handles[t.last] = &handle{node: t.hold(n), fd: fd, dir: dir, refs: 1}
	return t.last, nil
}

// handle holds an open file for a request; nil when there is none.
func (t *table) handle(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	if h != nil {
		h.refs++
	}
	return h
}

func (t *table) putHandle(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropHandle(h)
}

// release closes a handle when no request uses it any more.
func (t *table) release(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.handles[id]; h != nil {
		delete(t.handles, id)
		t.dropHandle(h)
	}
}

func (t *table) dropHandle(h *handle) {
	h.refs--
	if h.refs > 0 {
		return
	}
	t.files--
	unix.Close(h.fd)
	t.drop(h.node)
}

// closeVolume makes the guest lose all of a volume, for good.
func (t *table) closeVolume(vol *volume) {
	t.mu.Lock()
	vol.closed = true
	t.mu.Unlock()
	t.withdraw(func(n *node) bool { return n.vol == vol })
}

// reset makes the guest lose all but the root: it has started anew.
func (t *table) reset() {
	t.withdraw(func(n *node) bool { return n.id != fuse.FUSE_ROOT_ID })
}

// withdraw takes the nodes for which lost is true from the guest, with their
// handles. Requests that work on one finish.
func (t *table) withdraw(lost func(*node) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, h := range t.handles {
		if lost(h.node) {
			delete(t.handles, id)
			t.dropHandle(h)
		}
	}
	for _, n := range t.nodes {
		if !lost(n) {
			continue
		}
		t.unlist(n)
		n.gone = true
		if n.nlookup > 0 {
			n.nlookup = 0
			t.drop(n)
		}
	}
}

// perDevice holds one node of each file system that the guest can write to.
func (t *table) perDevice() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := map[uint64]bool{}
	var nodes []*node
	for _, n := range t.nodes {
		if !seen[n.dev] && n.hasAttrs() && !n.vol.readOnly {
			seen[n.dev] = true
			nodes = append(nodes, t.hold(n))
		}
	}
	return nodes
}

// procPath is a path that reopens a descriptor, or acts on what it names.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
