package share

import (
	"golang.org/x/sys/unix"
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
	open  int    // under way
	left  int    // whose event is still to come
	round uint64 // in which the last one ended
}

// stamp is how the guest left a file. While a request works on it (busy), any
// event is taken for the guest's: what the host changes meanwhile comes before
// the event that the guest's kernel raises when the request is answered.
type stamp struct {
	busy  int
	round uint64 // in which the last request ended
	what  touched
	mtime unix.Timespec // after a change of the content
	size  int64
}

// touched is what of a file a request changes.
type touched uint8

const (
	content touched = 1 << iota
	attributes
)

func newLedger() ledger {
	return ledger{names: map[change]*noted{}, files: map[fileID]*stamp{}}
}

// begin notes a change that is about to be made.
func (l *ledger) begin(c change) {
	n := l.names[c]
	if n == nil {
		n = &noted{}
		l.names[c] = n
	}
	n.open++
	n.left++
}

// end notes that the change was made, or not. stolen tells that somebody else
// has made it, and the event was taken for the guest's.
func (l *ledger) end(c change, done bool) (stolen bool) {
	n := l.names[c]
	if n == nil { // forgotten
		return false
	}
	n.open--
	n.round = l.round
	if !done {
		if n.left > 0 {
			n.left--
		} else {
			stolen = true
		}
	}
	if n.open == 0 && n.left == 0 {
		delete(l.names, c)
	}
	return stolen
}

// take matches an event.
func (l *ledger) take(c change) bool {
	n := l.names[c]
	if n == nil || n.left == 0 {
		return false
	}
	n.left--
	if n.open == 0 && n.left == 0 {
		delete(l.names, c)
	}
	return true
}

// work notes that a request changes a file.
func (l *ledger) work(id fileID) {
	s := l.files[id]
	if s == nil {
		s = &stamp{}
		l.files[id] = s
	}
	s.busy++
}

// worked notes how the request left it.
func (l *ledger) worked(id fileID, st *unix.Stat_t, what touched) {
	s := l.files[id]
	if s == nil || s.busy == 0 {
		return
	}
	s.busy--
	s.round = l.round
	s.what |= what
	if what&content != 0 {
		s.mtime, s.size = st.Mtim, st.Size
	}
}

// wrote tells whether a file has the content that the guest has left.
func (l *ledger) wrote(st *unix.Stat_t) bool {
	s := l.files[fileID{uint64(st.Dev), st.Ino}]
	return s != nil && (s.busy > 0 || s.what&content != 0 && s.mtime == st.Mtim && s.size == st.Size)
}

// changed tells whether the guest has changed a file's attributes. Names that come
// and go change ctime as well, so that doesn't tell.
func (l *ledger) changed(st *unix.Stat_t) bool {
	s := l.files[fileID{uint64(st.Dev), st.Ino}]
	return s != nil && (s.busy > 0 || s.what&attributes != 0)
}

// purge drops what ended before a round that found nothing to read: its event
// was queued by then, and so has been handled, or there is none.
func (l *ledger) purge(round uint64) {
	for c, n := range l.names {
		if n.open == 0 && n.round < round {
			delete(l.names, c)
		}
	}
	for id, s := range l.files {
		if s.busy == 0 && s.round < round {
			delete(l.files, id)
		}
	}
}

// forget drops all: events were lost.
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
	known := cs[:0]
	for _, c := range cs {
		if e.byID[c.dir] != nil {
			e.ledger.begin(c)
			known = append(known, c)
		}
	}
	return func(err error) {
		var stolen []change
		e.mu.Lock()
		for _, c := range known {
			if e.ledger.end(c, err == nil) {
				stolen = append(stolen, c)
			}
		}
		e.mu.Unlock()
		for _, c := range stolen {
			e.replayStolen(c)
		}
	}
}

// replayStolen queues a change of the host that was taken for the guest's.
func (e *events) replayStolen(c change) {
	e.mu.Lock()
	w := e.byID[c.dir]
	e.mu.Unlock()
	if w == nil {
		return
	}
	ev := event{wd: w.wd, name: c.name}
	switch c.kind {
	case unix.IN_CREATE, unix.IN_MOVED_TO:
		ev.mask = unix.IN_CREATE
	default:
		ev.mask = unix.IN_DELETE
	}
	e.handle(ev)
}

// file notes that the caller is about to change a file, of which fd is a
// descriptor until end has been called.
func (e *events) file(n *node, fd int, what touched) (end func()) {
	if e == nil || !e.active.Load() {
		return func() {}
	}
	id := fileID{n.dev, n.ino}
	e.mu.Lock()
	e.ledger.work(id)
	full := len(e.ledger.files) > maxLedger
	e.mu.Unlock()
	if full {
		e.tidy()
	}
	return func() {
		var st unix.Stat_t
		if fstat(fd, &st) != nil {
			what &^= content
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.ledger.worked(id, &st, what)
	}
}

// tidy purges the ledger if there are no events to wait for.
func (e *events) tidy() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.ledger.reading {
		return
	}
	e.ledger.round++
	if n, err := unix.IoctlGetInt(e.fd, unix.TIOCINQ); err == nil && n == 0 {
		e.ledger.purge(e.ledger.round)
	}
}
