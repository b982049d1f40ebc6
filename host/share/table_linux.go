package share

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A node is an inode that the guest knows, or that a request works on. Its
// descriptor names the inode whatever happens to its name, and pins the inode
// number. When descriptors run short the node may lose it, and gets it back
// from its name (see reopen).
type node struct {
	nodeKey
	id   uint64
	kind uint32 // S_IFMT bits, which never change
	// identity: see identify.
	identity string

	// fd and proc don't change while a request holds the node: use, find and
	// add return it with both.
	fd   int    // O_PATH; -1 while the node is without
	proc string // path that reopens fd

	// By table.mu.
	nlookup uint64
	refs    int    // requests and handles
	kids    int    // nodes whose parent this is
	parent  *node  // where it was seen last; nil: it can't be found again
	name    string // in parent
	gone    bool   // its volume was withdrawn
	// unwatched is events.mu's: the host refuses to watch the directory.
	unwatched bool
	idle      idleLinks // in table.idle

	told   atomic.Uint64             // owner and group that the guest was told last
	made   atomic.Int64              // when the guest made it or gave it a name, in Unix ns
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
	node *node
	fd   int
	dir  *dirStream // nil for a file
	refs int        // by table.mu: requests, and one while it is open
}

// table holds the nodes and handles of one file system. A guest may forget an
// inode or close a file while another request uses it, so each request holds
// what it works on: a descriptor that was closed too soon could be another's by
// then.
type table struct {
	mu      sync.Mutex
	nodes   map[uint64]*node
	byKey   map[nodeKey]*node
	byName  map[entryKey]*node // by parent and name, which were seen last
	handles map[uint64]*handle
	idle    idleList // nodes that can do without their descriptor
	last    uint64   // id given out last, to nodes and handles; never reused
	files   int      // descriptors held
	max     int
	dead    []int // descriptors to close once mu is free
	lost    []*node
	// forgotten is told of what may be watched and has left the table, once mu is
	// free. Optional.
	forgotten func(*node)
	// unnamed is told of names that have left the table with their node, and may
	// be there on the host still, once mu is free. Optional.
	unnamed func(entryKey, uint32)
	names   []lostName
}

// lostName is a name, and the kind (S_IFMT bits) of what had it.
type lostName struct {
	entryKey
	kind uint32
}

// entryKey is a name in a directory.
type entryKey struct {
	dir  *node
	name string
}

func newTable(maxFiles int) *table {
	t := &table{
		nodes: map[uint64]*node{}, byKey: map[nodeKey]*node{}, byName: map[entryKey]*node{}, handles: map[uint64]*handle{},
		last: fuse.FUSE_ROOT_ID, max: maxFiles,
	}
	t.idle.init()
	return t
}

// unlock ends a change. The last close of a file that has no name any more
// frees its blocks, so it must not keep others from the table.
func (t *table) unlock() {
	dead, lost, names := t.dead, t.lost, t.names
	t.dead, t.lost, t.names = nil, nil, nil
	t.mu.Unlock()
	for _, k := range names {
		t.unnamed(k.entryKey, k.kind)
	}
	for _, n := range lost {
		t.forgotten(n)
	}
	for _, fd := range dead {
		unix.Close(fd)
	}
}

// close takes a descriptor out of the account.
func (t *table) close(fd int) {
	t.files--
	t.dead = append(t.dead, fd)
}

// node holds the node with an id for a request; nil when there is none.
func (t *table) node(id uint64) (*node, error) {
	t.mu.Lock()
	n := t.hold(t.nodes[id])
	t.unlock()
	return t.ready(n)
}

// find holds the node of an inode, which was just seen as name in p; nil when
// it isn't known.
func (t *table) find(k nodeKey, p *node, name string) (*node, error) {
	t.mu.Lock()
	n := t.hold(t.byKey[k])
	if n != nil {
		t.setName(n, p, name)
	}
	t.unlock()
	return t.ready(n)
}

// ready gives a held node its descriptor.
func (t *table) ready(n *node) (*node, error) {
	if n == nil {
		return nil, nil
	}
	if err := t.reopen(n); err != nil {
		t.put(n)
		return nil, err
	}
	return n, nil
}

// hold begins a request's use of n.
func (t *table) hold(n *node) *node {
	if n != nil {
		n.refs++
		t.idle.remove(n)
	}
	return n
}

// add holds the node of an inode and takes over a descriptor of it. It was seen
// as name in p; p is nil where that can't be opened again.
func (t *table) add(k nodeKey, kind uint32, fd int, p *node, name string) (*node, error) {
	identity := identify(fd)
	t.mu.Lock()
	defer t.unlock()
	t.files++
	n := t.byKey[k]
	if n != nil && n.fd >= 0 {
		t.close(fd)
		t.setName(t.hold(n), p, name)
		return n, nil
	}
	if n != nil {
		// Without its descriptor the node doesn't keep the number from being
		// given to another inode. If this is the same, the guest has it twice.
		delete(t.byKey, k)
	}
	if k.vol.closed.Load() {
		t.close(fd)
		return nil, unix.ESTALE
	}
	if !t.room() {
		t.close(fd)
		return nil, unix.ENFILE
	}
	t.last++
	n = &node{nodeKey: k, id: t.last, fd: fd, proc: procPath(fd), kind: kind, identity: identity, refs: 1}
	t.nodes[n.id] = n
	t.byKey[k] = n
	t.setName(n, p, name)
	return n, nil
}

// seen holds the node that was seen last as name in p, which may be without
// its descriptor; nil when there is none.
func (t *table) seen(p *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hold(t.byName[entryKey{p, name}])
}

// again holds what its caller knows to be held already; nil for nil.
func (t *table) again(n *node) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hold(n)
}

// past holds a new node for what the guest is to remember of a file that isn't
// there any more. It can't be used for anything.
func (t *table) past(vol *volume, kind uint32) *node {
	t.mu.Lock()
	defer t.unlock()
	t.last++
	n := &node{nodeKey: nodeKey{vol: vol, ino: t.last}, id: t.last, fd: -1, kind: kind, refs: 1}
	t.nodes[n.id] = n
	return n
}

// renew has the guest know the inode of n, a directory, by another number when
// it comes across it again: its kernel takes n for removed.
func (t *table) renew(n *node) {
	t.mu.Lock()
	defer t.unlock()
	if t.byKey[n.nodeKey] == n {
		delete(t.byKey, n.nodeKey)
	}
}

// path of a node from the root on; empty when it isn't known.
func (t *table) path(n *node) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for ; n != nil; n = n.parent {
		if n.parent == nil {
			if n.gone || n.fd < 0 { // the descriptor of an export's own node is never taken
				return ""
			}
			names = append(names, n.vol.name)
			break
		}
		names = append(names, n.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// remember counts that the guest is told of n, which its caller holds.
func (t *table) remember(n *node) bool {
	t.mu.Lock()
	defer t.unlock()
	if n.gone {
		return false
	}
	n.nlookup++
	return true
}

// forget takes back count times remember.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.unlock()
	n := t.nodes[id]
	if n == nil || n.nlookup == 0 || count == 0 {
		return
	}
	n.nlookup -= min(count, n.nlookup)
	t.settle(n)
}

// put ends a request's hold.
func (t *table) put(n *node) {
	t.mu.Lock()
	defer t.unlock()
	t.drop(n)
}

func (t *table) drop(n *node) {
	n.refs--
	t.settle(n)
}

// settle decides what becomes of n after it has lost a user.
func (t *table) settle(n *node) {
	for n != nil && n.refs == 0 && n.nlookup == 0 && n.kids == 0 {
		t.unlist(n)
		t.shut(n)
		p := n.parent
		t.unname(n)
		if n.parent = nil; p != nil {
			p.kids--
			if t.unnamed != nil {
				t.names = append(t.names, lostName{entryKey{p, n.name}, n.kind})
			}
		}
		n = p
	}
	if n != nil && n.refs == 0 && n.fd >= 0 && n.parent != nil && n.identity != "" && !n.gone {
		t.idle.add(n)
		if t.idle.n > maxIdle {
			t.shut(t.idle.first())
		}
	}
}

// shut takes n's descriptor.
func (t *table) shut(n *node) {
	t.idle.remove(n)
	if n.fd >= 0 {
		t.close(n.fd)
		n.fd, n.proc = -1, ""
	}
}

func (t *table) unlist(n *node) {
	delete(t.nodes, n.id)
	if t.byKey[n.nodeKey] == n {
		delete(t.byKey, n.nodeKey)
	}
	if t.forgotten != nil && n.watchable() {
		t.lost = append(t.lost, n)
	}
}

// unname takes n out of the names.
func (t *table) unname(n *node) {
	if k := (entryKey{n.parent, n.name}); t.byName[k] == n {
		delete(t.byName, k)
	}
}

// open takes over a descriptor of n as a new handle.
func (t *table) open(n *node, fd int, dir *dirStream) (uint64, error) {
	t.mu.Lock()
	defer t.unlock()
	t.files++
	if n.gone {
		t.close(fd)
		return 0, unix.ESTALE
	}
	if !t.room() {
		t.close(fd)
		return 0, unix.ENFILE
	}
	t.last++
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
	defer t.unlock()
	t.dropHandle(h)
}

// release closes a handle when no request uses it any more.
func (t *table) release(id uint64) {
	t.mu.Lock()
	defer t.unlock()
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
	t.close(h.fd)
	t.drop(h.node)
}

// withdraw takes the nodes for which lost is true from the guest, for good, with
// their handles. Requests that work on one finish.
func (t *table) withdraw(lost func(*node) bool) {
	t.mu.Lock()
	defer t.unlock()
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
		// Where one goes its parent goes too, or is the root: the links among
		// them need no account any more.
		t.unlist(n)
		n.gone, n.nlookup, n.kids = true, 0, 0
		if n.parent != nil && !lost(n.parent) {
			n.parent.kids--
		}
		t.unname(n)
		n.parent = nil
		t.settle(n)
	}
}

// perDevice holds one node of each file system that the guest can write to.
func (t *table) perDevice() []*node {
	t.mu.Lock()
	defer t.unlock()
	seen := map[uint64]bool{}
	var nodes []*node
	for _, n := range t.nodes {
		if !seen[n.dev] && n.fd >= 0 && n.hasAttrs() && !n.vol.readOnly {
			seen[n.dev] = true
			nodes = append(nodes, t.hold(n))
		}
	}
	return nodes
}

// procPath is a path that reopens a descriptor, or acts on what it names.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
