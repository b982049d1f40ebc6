package share

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// The guest may remember many more inodes than there are descriptors. The nodes
// that no request uses are kept in the order of their last use; where a
// descriptor is missing, the first of them lends its own. It comes back by its
// parent and name, in one step that follows no link, and only if what is there
// is the same inode still: same number, same identity. So a node never becomes
// another file, nor leads anywhere but where it led before. If the host has
// moved the file meanwhile the guest gets ESTALE, and looks the name up again.

// idleLinks chain the nodes of an idleList.
type idleLinks struct{ prev, next *node }

// idleList is a ring of nodes, used longest ago first.
type idleList struct {
	root node
	n    int
}

// maxIdle is how many nodes keep their descriptor though no request uses them,
// where the limit on descriptors allows more: each pins an inode of the host's
// kernel, about 1 KiB.
const maxIdle = 16 << 10

func (l *idleList) init() { l.root.idle = idleLinks{&l.root, &l.root} }

// add puts n at the end, if it isn't in the list.
func (l *idleList) add(n *node) {
	if n.idle.next != nil {
		return
	}
	n.idle = idleLinks{l.root.idle.prev, &l.root}
	n.idle.prev.idle.next = n
	n.idle.next.idle.prev = n
	l.n++
}

// remove takes n out, if it is in the list.
func (l *idleList) remove(n *node) {
	if n.idle.next == nil {
		return
	}
	n.idle.prev.idle.next = n.idle.next
	n.idle.next.idle.prev = n.idle.prev
	n.idle = idleLinks{}
	l.n--
}

// first is the node used longest ago; nil when the list is empty.
func (l *idleList) first() *node {
	if l.root.idle.next == &l.root {
		return nil
	}
	return l.root.idle.next
}

// room tells whether the descriptors are within their limit, and shuts idle
// nodes to make it so.
func (t *table) room() bool {
	for t.files > t.max {
		n := t.idle.first()
		if n == nil {
			return false
		}
		t.shut(n)
	}
	return true
}

// identify tells an inode from all that have or had its number: the handle that
// the kernel would give to an NFS client has a generation in it; else the time
// of birth. Empty where the host's file system knows neither.
func identify(fd int) string {
	const handleFID = 0x200 // AT_HANDLE_FID, Linux 6.5: also where it couldn't be opened
	for _, flags := range []int{unix.AT_EMPTY_PATH, unix.AT_EMPTY_PATH | handleFID} {
		if h, _, err := unix.NameToHandleAt(fd, "", flags); err == nil {
			return strconv.Itoa(int(h.Type())) + ":" + string(h.Bytes())
		}
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st); err == nil && st.Mask&unix.STATX_BTIME != 0 {
		return "born " + strconv.FormatInt(st.Btime.Sec, 10) + "." + strconv.Itoa(int(st.Btime.Nsec))
	}
	return ""
}

// reopen gives n, which the caller holds, its descriptor back.
func (t *table) reopen(n *node) error {
	t.mu.Lock()
	p, name, want := n.parent, n.name, n.identity
	if n.fd >= 0 {
		t.unlock()
		return nil
	}
	if p == nil || n.gone {
		t.unlock()
		return unix.ESTALE
	}
	t.hold(p)
	t.unlock()
	defer t.put(p)
	if err := t.reopen(p); err != nil {
		return err
	}
	fd, err := openat(p.fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return unix.ESTALE
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = fstat(fd, &st)
	if err == nil && (uint64(st.Dev) != n.dev || st.Ino != n.ino || st.Mode&unix.S_IFMT != n.kind || identify(fd) != want) {
		err = unix.ESTALE
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	return t.reopened(n, fd)
}

// reopened takes over fd for n, unless another request was faster.
func (t *table) reopened(n *node, fd int) error {
	t.mu.Lock()
	defer t.unlock()
	t.files++
	switch {
	case n.fd >= 0:
		t.close(fd)
	case n.gone:
		t.close(fd)
		return unix.ESTALE
	case !t.room():
		t.close(fd)
		return unix.ENFILE
	default:
		n.fd, n.proc = fd, procPath(fd)
	}
	return nil
}

// named notes that n, which the caller holds, is name in p now; with p nil, that
// it has lost the name by which it could be opened again.
func (t *table) named(n, p *node, name string) {
	t.mu.Lock()
	defer t.unlock()
	t.setName(n, p, name)
}

func (t *table) setName(n, p *node, name string) {
	if n.gone || n.parent == p && n.name == name {
		return
	}
	old := n.parent
	// Names are seen one after the other: together they may claim that a
	// directory is inside itself.
	for a := p; a != nil && n.isDir(); a = a.parent {
		if a == n {
			p = nil
		}
	}
	t.unname(n)
	n.parent, n.name = p, name
	if p != nil && !p.gone {
		p.kids++
		t.byName[entryKey{p, name}] = n
	} else {
		n.parent, n.name = nil, ""
	}
	if old != nil {
		old.kids--
		t.settle(old)
	}
}
