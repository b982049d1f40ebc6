package share

import (
	"math"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// ledger remembers what the guest itself changes, so that it isn't told of it.
// Guarded by events.mu.
//
// The host's kernel queues an event within the system call that makes the
// change. So what was noted before a call, and is not taken when all events up
// to its end have been read, will never be: it is dropped then.
type ledger struct {
	names   map[change]*noted
	files   map[fileID]*stamp
	reading bool   // events may have been read that are not yet handled
	round   uint64 // of reading, from 1
}

// change is one of a name: kind is IN_CREATE, IN_DELETE, IN_MOVED_FROM or
// IN_MOVED_TO.
type change struct {
	dir  fileID
	name string
	kind uint32
}

// change of a name in a directory.
func (n *node) change(name string, kind uint32) change {
	return change{fileID{n.dev, n.ino}, name, kind}
}

// noted counts equal changes.
type noted struct {
	change
	open  int    // under way
	left  int    // whose event is still to come
	round uint64 // by the end of which the last one's event has been read
	dir   bool   // the event that was taken last was a directory's
}

// stamp is how the guest left a file. While a request works on it (busy), any
// event is taken for the guest's: what the host changes meanwhile comes before
// the event that the guest's kernel raises when the request is answered.
type stamp struct {
	id    fileID
	busy  busy
	round uint64 // by the end of which the last request's event has been read
	what  touched
	mtime unix.Timespec // after a change of the content
	size  int64
	// after the last request, with what may have changed in one tick of ctime's
	ctime          unix.Timespec
	mode, uid, gid uint32
}

// touched is what of a file a request changes.
type touched uint8

const (
	content touched = 1 << iota
	attributes
)

// busy counts the requests under way that change the content of a file, and those
// that change, or move, anything else of it.
type busy struct{ content, other int }

func (b *busy) add(what touched, n int) {
	if what&content != 0 {
		b.content += n
	}
	if what != content {
		b.other += n
	}
}

func newLedger() ledger {
	return ledger{names: map[change]*noted{}, files: map[fileID]*stamp{}}
}

// begin notes a change that is about to be made.
func (l *ledger) begin(c change) *noted {
	n := l.names[c]
	if n == nil {
		n = &noted{change: c}
		l.names[c] = n
	}
	n.open++
	n.left++
	return n
}

// ends are what is known when a change has ended.
type ends struct {
	done bool // it was made
	// unread: events are waiting to be read.
	unread bool
}

// end notes that the change was made, or not. stolen tells that somebody else
// has made it, and the event was taken for the guest's.
func (l *ledger) end(n *noted, how ends) (stolen bool) {
	n.open--
	if !how.done {
		if n.left > 0 {
			n.left--
		} else {
			stolen = true
		}
	}
	var over bool
	if n.round, over = l.last(how.unread); over {
		n.left = min(n.left, n.open) // what changes nothing has no event
	}
	l.dropName(n)
	return stolen
}

// last is the round by the end of which all events up to now have been handled,
// if they haven't yet.
func (l *ledger) last(unread bool) (round uint64, over bool) {
	switch {
	case unread:
		return l.round + 1, false
	case l.reading:
		return l.round, false
	}
	return l.round, true
}

func (l *ledger) dropName(n *noted) {
	if n.open == 0 && n.left == 0 && l.names[n.change] == n {
		delete(l.names, n.change)
	}
}

// take matches an event.
func (l *ledger) take(c change, dir bool) bool {
	n := l.names[c]
	if n == nil || n.left == 0 {
		return false
	}
	n.left--
	n.dir = dir
	l.dropName(n)
	return true
}

// work notes that a request works on a file.
func (l *ledger) work(id fileID, what touched) *stamp {
	s := l.files[id]
	if s == nil {
		s = &stamp{id: id}
		l.files[id] = s
	}
	s.busy.add(what, 1)
	return s
}

// worked notes how the request left it, and what it has changed of it.
func (l *ledger) worked(s *stamp, st *unix.Stat_t, what touched, unread bool) {
	s.busy.add(what, -1)
	s.what |= what
	if what&content != 0 {
		s.mtime, s.size = st.Mtim, st.Size
	}
	s.ctime, s.mode, s.uid, s.gid = st.Ctim, st.Mode, st.Uid, st.Gid
	var over bool
	if s.round, over = l.last(unread); over && s.busy == (busy{}) && l.files[s.id] == s {
		delete(l.files, s.id)
	}
}

// wrote tells whether a file has the content that the guest has left.
func (l *ledger) wrote(st *unix.Stat_t) bool {
	s := l.files[fileID{uint64(st.Dev), st.Ino}]
	return s != nil && (s.busy.content > 0 || s.what&content != 0 && s.mtime == st.Mtim && s.size == st.Size)
}

// changed tells whether a file has the attributes that the guest has left. What
// else the guest does to it, by which ctime moves, is in the ledger too; but not
// that it makes names in a folder, so of one ctime tells nothing.
func (l *ledger) changed(st *unix.Stat_t) bool {
	s := l.files[fileID{uint64(st.Dev), st.Ino}]
	switch {
	case s == nil || s.busy.other == 0 && s.what&attributes == 0:
		return false
	case s.busy != (busy{}):
		return true
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	return (dir || s.ctime == st.Ctim) && s.mode == st.Mode && s.uid == st.Uid && s.gid == st.Gid
}

// purge drops what can't have an event any more, as a round has found nothing to
// read.
func (l *ledger) purge(round uint64) {
	for c, n := range l.names {
		if n.open == 0 && n.round <= round {
			delete(l.names, c)
		}
	}
	for id, s := range l.files {
		if s.busy == (busy{}) && s.round <= round {
			delete(l.files, id)
		}
	}
}

// forget drops all: events were lost. What is under way ends without a trace.
func (l *ledger) forget() {
	clear(l.names)
	clear(l.files)
}

// maxLedger is how much is noted before the watcher is asked whether it needs
// to be: what the guest changes may be where nothing is watched.
const maxLedger = 1024

// names notes changes of names that the caller is about to make, where they are
// watched. The caller tells how it went.
func (e *events) names(cs ...change) (end func(error)) {
	if e == nil || !e.active.Load() {
		return func(error) {}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var known []*noted
	for _, c := range cs {
		if e.byID[c.dir] != nil {
			known = append(known, e.ledger.begin(c))
		}
	}
	return func(err error) {
		var stolen []*noted
		e.mu.Lock()
		how := ends{done: err == nil, unread: e.unread()}
		for _, n := range known {
			if e.ledger.end(n, how) {
				stolen = append(stolen, n)
			}
		}
		e.mu.Unlock()
		for _, n := range stolen {
			e.replayStolen(n)
		}
	}
}

// unread tells whether events wait to be read. Guarded by mu.
func (e *events) unread() bool {
	if e.closed {
		return false
	}
	n, err := unix.IoctlGetInt(e.fd, unix.TIOCINQ)
	return err != nil || n > 0
}

// replayStolen queues a change of the host that was taken for the guest's.
func (e *events) replayStolen(n *noted) {
	e.mu.Lock()
	w := e.byID[n.change.dir]
	ev := event{name: n.name}
	if n.dir {
		ev.mask = unix.IN_ISDIR
	}
	e.mu.Unlock()
	if w == nil {
		return
	}
	ev.wd = w.wd
	switch n.kind {
	case unix.IN_CREATE, unix.IN_MOVED_TO:
		e.each(ev, proto.Replay_CREATE)
	default:
		e.each(ev, proto.Replay_DELETE)
	}
}

// file notes that the caller is about to work on a file, which it holds with its
// descriptor until end has been called; what is what it changes of it, apart from
// names. n may be nil.
func (e *events) file(n *node, what touched) (end func()) {
	if n == nil || e == nil || !e.active.Load() {
		return func() {}
	}
	id := fileID{n.dev, n.ino}
	e.mu.Lock()
	s := e.ledger.work(id, what)
	full := len(e.ledger.files) > maxLedger
	e.mu.Unlock()
	if full {
		e.tidy()
	}
	return func() {
		var st unix.Stat_t
		err := fstat(n.fd, &st)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.ledger.worked(s, &st, what, e.unread())
		if err != nil { // it has no descriptor any more: nothing is known
			s.what = 0
		}
	}
}

// tidy purges the ledger if there are no events to wait for.
func (e *events) tidy() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed && !e.ledger.reading && !e.unread() {
		e.ledger.purge(math.MaxUint64)
	}
}
