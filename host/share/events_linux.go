package share

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// events tells the guest's watchers (inotify) what happens on the host. It
// watches the directories that the guest knows, which are all that a process
// there can watch, and has the guest's agent make each change once more (replay),
// which the server takes without touching the host (see replays): so the guest's
// kernel raises the event and corrects what it remembers.
//
//	host's kernel --inotify--> watcher --ops--> sender --stream--> agent
//	                              |                                  | same operation
//	     own changes (ledger) ----+          server <-----FUSE------ guest's kernel
//
// It begins with the first directory and lives as long as its fileSystem.
type events struct {
	f     *fileSystem
	dial  func(context.Context) (io.ReadWriteCloser, error)
	log   *slog.Logger
	count *counters

	ctx    context.Context // ended by close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// active says that something is watched or was.
	active atomic.Bool
	// thread is the agent's that replays, in FUSE requests; 0: none.
	thread atomic.Uint32

	// watchMu is taken for changes of what is watched, before mu.
	watchMu sync.Mutex
	inotify *os.File
	fd      int  // inotify's: File.Fd would make it block
	refused bool // by the host: there is no inotify

	mu     sync.Mutex
	closed bool
	byWD   map[int32]*watch
	byID   map[fileID]*watch
	ledger ledger
	queue  queue
	wake   chan struct{} // of capacity 1: there is something for the sender
	// written are files of which the host's end of writing is to be told: it
	// has made them or changed their content.
	written map[fileID]struct{}
	begun   time.Time     // the last reading
	current time.Time     // up to when all events have been read
	caught  chan struct{} // closed when no event is left to read; nil: nobody waits
	missed  time.Time     // since when the queue has had no room; zero: it had
}

// watch is a directory of the host that is watched, for all nodes that are it.
type watch struct {
	id    fileID
	wd    int32
	nodes []*node
}

// counters are those of Events.
type counters struct {
	watched, unwatched, replayed, merged, void, degraded, lost, overflows atomic.Int64
}

func (c *counters) events() Events {
	return Events{
		Watched: c.watched.Load(), Unwatched: c.unwatched.Load(), Replayed: c.replayed.Load(), Merged: c.merged.Load(),
		Void: c.void.Load(), Degraded: c.degraded.Load(), Lost: c.lost.Load(), Overflows: c.overflows.Load(),
	}
}

func newEvents(f *fileSystem, opts Options, count *counters) *events {
	e := &events{
		f: f, dial: opts.Replays, log: opts.log(), count: count,
		byWD: map[int32]*watch{}, byID: map[fileID]*watch{},
		ledger: newLedger(), queue: newQueue(), wake: make(chan struct{}, 1),
		written: map[fileID]struct{}{},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	f.table.forgotten = e.unwatch
	return e
}

// watched are the host's events that count.
const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY |
	unix.IN_ATTRIB | unix.IN_CLOSE_WRITE

// watch begins to watch a directory, which its caller holds. It is watched when
// this returns, before the guest knows of it: so there is no change that the
// guest neither sees nor is told of.
func (e *events) watch(n *node) {
	if e == nil {
		return
	}
	e.watchMu.Lock()
	defer e.watchMu.Unlock()
	id := fileID{n.dev, n.ino}
	e.mu.Lock()
	w, closed := e.byID[id], e.closed
	known := w != nil && slices.Contains(w.nodes, n)
	e.mu.Unlock()
	if known || closed || e.refused || !e.start() {
		return
	}
	// The same directory has the same number, however often it is added.
	wd, err := unix.InotifyAddWatch(e.fd, n.proc, watched|unix.IN_ONLYDIR|unix.IN_EXCL_UNLINK)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		if !n.unwatched {
			n.unwatched = true
			if e.count.unwatched.Add(1) == 1 {
				e.log.Warn("changes of a shared folder are not seen by watchers in containers", "error", os.NewSyscallError("inotify_add_watch", err))
			}
		}
		return
	}
	if w = e.byWD[int32(wd)]; w == nil {
		w = &watch{id: id, wd: int32(wd)}
		e.byWD[w.wd], e.byID[id] = w, w
		e.count.watched.Add(1)
	}
	w.nodes = append(w.nodes, n)
	if n.unwatched {
		n.unwatched = false
		e.count.unwatched.Add(-1)
	}
}

// start begins, once; by watchMu.
func (e *events) start() bool {
	if e.inotify != nil {
		return true
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		e.refused = true
		e.count.unwatched.Add(1)
		e.log.Warn("changes on the host are not seen by watchers in containers", "error", os.NewSyscallError("inotify_init", err))
		return false
	}
	e.inotify, e.fd = os.NewFile(uintptr(fd), "inotify"), fd
	e.active.Store(true)
	e.wg.Go(e.read)
	e.wg.Go(e.send)
	return true
}

// unwatch ends the watch of a directory that the guest has forgotten.
func (e *events) unwatch(n *node) {
	if !e.active.Load() {
		return
	}
	e.watchMu.Lock()
	defer e.watchMu.Unlock()
	e.mu.Lock()
	if n.unwatched {
		n.unwatched = false
		e.count.unwatched.Add(-1)
	}
	w := e.byID[fileID{n.dev, n.ino}]
	last := false
	if w != nil {
		if i := slices.Index(w.nodes, n); i >= 0 {
			w.nodes = slices.Delete(w.nodes, i, i+1)
			last = len(w.nodes) == 0
		}
	}
	if last {
		e.dropLocked(w)
	}
	closed := e.closed
	e.mu.Unlock()
	if last && !closed {
		unix.InotifyRmWatch(e.fd, uint32(w.wd)) // fails when the directory is gone
	}
}

func (e *events) dropLocked(w *watch) {
	if e.byWD[w.wd] == w {
		delete(e.byWD, w.wd)
		if e.byID[w.id] == w { // a directory that has its inode number now may be watched
			delete(e.byID, w.id)
		}
		e.count.watched.Add(-1)
	}
}

// close ends everything, and waits for it. Idempotent.
func (e *events) close() {
	if e == nil {
		return
	}
	e.cancel()
	e.watchMu.Lock()
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.thread.Store(0)
	for _, w := range e.byWD {
		e.dropLocked(w)
	}
	e.mu.Unlock()
	e.watchMu.Unlock()
	if first && e.inotify != nil {
		e.inotify.Close() // waits for the reader, which takes the locks
	}
	e.wg.Wait()
}

// event is one of inotify's.
type event struct {
	wd           int32
	mask, cookie uint32
	name         string
}

// read handles the host's events until close.
func (e *events) read() {
	raw, err := e.inotify.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	var moved []event // IN_MOVED_FROM whose IN_MOVED_TO is still to come
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			for {
				round := e.round()
				if n, failed = unix.Read(int(fd), buf); failed != unix.EAGAIN && failed != unix.EINTR {
					return true
				}
				if failed == unix.EINTR {
					continue
				}
				if len(moved) > 0 {
					// The other half comes at once, if there is one.
					p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
					if n, _ := unix.Poll(p, movedWait); n > 0 {
						continue
					}
					for _, m := range moved {
						e.movedOut(m)
					}
					moved = moved[:0]
				}
				e.drained(round)
				return false
			}
		})
		if err != nil || failed != nil {
			return // closed
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			var ev event
			ev, b = parseEvent(b)
			switch {
			case ev.mask&unix.IN_MOVED_FROM != 0:
				if !e.own(ev, unix.IN_MOVED_FROM) {
					moved = append(moved, ev)
				}
			case ev.mask&unix.IN_MOVED_TO != 0:
				if e.own(ev, unix.IN_MOVED_TO) {
					break
				}
				i := slices.IndexFunc(moved, func(m event) bool { return m.cookie == ev.cookie })
				if i < 0 {
					e.movedIn(ev)
					break
				}
				e.moved(moved[i], ev)
				moved = slices.Delete(moved, i, i+1)
			default:
				e.handle(ev)
			}
		}
	}
}

// movedWait is how long, in ms, the second half of a rename is waited for: its
// system call puts one right after the other.
const movedWait = 2

func parseEvent(b []byte) (event, []byte) {
	ne := func(i int) uint32 { return nativeUint32(b[i:]) }
	size := unix.SizeofInotifyEvent + int(ne(12))
	name := b[unix.SizeofInotifyEvent:size]
	return event{wd: int32(ne(0)), mask: ne(4), cookie: ne(8), name: unix.ByteSliceToString(name)}, b[size:]
}

// dirs are the nodes of an event's directory.
func (e *events) dirs(ev event) []*node {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.byWD[ev.wd]; w != nil {
		return slices.Clone(w.nodes)
	}
	return nil
}

// own tells whether an event of a name is that of a change by the guest.
func (e *events) own(ev event, kind uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.byWD[ev.wd]
	return w != nil && e.ledger.take(change{w.id, ev.name, kind})
}

func (e *events) handle(ev event) {
	switch {
	case ev.mask&unix.IN_Q_OVERFLOW != 0:
		e.overflow()
	case ev.mask&unix.IN_IGNORED != 0: // the directory is gone
		e.mu.Lock()
		if w := e.byWD[ev.wd]; w != nil {
			e.dropLocked(w)
		}
		e.mu.Unlock()
	case ev.name == "": // of the directory itself: its parent's event is taken
	case ev.mask&unix.IN_CREATE != 0:
		if !e.own(ev, unix.IN_CREATE) {
			e.each(ev, proto.Replay_CREATE)
		}
	case ev.mask&unix.IN_DELETE != 0:
		if !e.own(ev, unix.IN_DELETE) {
			e.each(ev, proto.Replay_DELETE)
		}
	case ev.mask&unix.IN_MODIFY != 0:
		e.each(ev, proto.Replay_MODIFY)
	case ev.mask&unix.IN_CLOSE_WRITE != 0:
		e.each(ev, proto.Replay_WRITTEN)
	case ev.mask&unix.IN_ATTRIB != 0:
		e.each(ev, proto.Replay_ATTRIB)
	}
}

// each queues a change for all nodes of a directory.
func (e *events) each(ev event, kind proto.Replay_Kind) {
	var id fileID
	for _, n := range e.dirs(ev) {
		var st unix.Stat_t
		mode, own := e.look(n, ev, kind, &st)
		id = fileID{uint64(st.Dev), st.Ino}
		if !own {
			e.add(&op{kind: kind, mode: mode, dir: n, name: ev.name})
		}
		if !own && mode == unix.S_IFREG && (kind == proto.Replay_CREATE || kind == proto.Replay_MODIFY) {
			e.mu.Lock()
			if len(e.written) >= maxLedger { // of files that stay open
				clear(e.written)
			}
			e.written[id] = struct{}{}
			e.mu.Unlock()
		}
	}
	if kind == proto.Replay_WRITTEN {
		e.mu.Lock()
		delete(e.written, id)
		e.mu.Unlock()
	}
}

// look finds out what kind of thing an event is about, and fills st if it is
// there. A change of content or attributes is the guest's own if the file still is
// as the guest left it.
//
// Of the end of writing nobody is told who may want to execute the file: it takes
// the file being open for writing, which would keep it from being executed.
func (e *events) look(dir *node, ev event, kind proto.Replay_Kind, st *unix.Stat_t) (mode uint32, own bool) {
	mode = unix.S_IFREG
	if ev.mask&unix.IN_ISDIR != 0 {
		mode = unix.S_IFDIR
	}
	if kind == proto.Replay_DELETE {
		return mode, false
	}
	p, err := e.f.node(dir.id)
	if p == nil || err != nil {
		return mode, false
	}
	defer e.f.put(p)
	if fstatat(p.fd, ev.name, st) != nil {
		// It is gone: more follows.
		return mode, kind == proto.Replay_MODIFY || kind == proto.Replay_ATTRIB || kind == proto.Replay_WRITTEN
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch kind {
	case proto.Replay_MODIFY:
		own = e.ledger.wrote(st)
	case proto.Replay_ATTRIB:
		own = e.ledger.changed(st)
	case proto.Replay_WRITTEN:
		_, wrote := e.written[fileID{uint64(st.Dev), st.Ino}]
		own = !wrote || st.Mode&0o111 != 0
	}
	return st.Mode & unix.S_IFMT, own
}

// moved queues a rename within what is watched.
func (e *events) moved(from, to event) {
	sources := e.dirs(from)
	for _, q := range e.dirs(to) {
		i := slices.IndexFunc(sources, func(p *node) bool { return p.vol == q.vol })
		mode, _ := e.look(q, to, proto.Replay_RENAME, new(unix.Stat_t))
		o := &op{kind: proto.Replay_RENAME, mode: mode, to: q, toName: to.name}
		if i >= 0 {
			o.dir, o.name = sources[i], from.name
			sources = slices.Delete(sources, i, i+1)
		}
		e.add(o)
	}
	e.out(sources, from)
}

// movedIn queues a rename from where nothing is watched.
func (e *events) movedIn(to event) { e.moved(event{wd: -1}, to) }

// movedOut queues a rename to where nothing is watched.
func (e *events) movedOut(from event) { e.out(e.dirs(from), from) }

func (e *events) out(sources []*node, from event) {
	for _, p := range sources {
		mode, _ := e.look(p, from, proto.Replay_DELETE, new(unix.Stat_t))
		e.add(&op{kind: proto.Replay_RENAME, mode: mode, dir: p, name: from.name})
	}
}

// round begins to read events.
func (e *events) round() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.reading = true
	e.ledger.round++
	e.begun = time.Now()
	return e.ledger.round
}

// drained notes that there was nothing to read any more.
func (e *events) drained(round uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.reading = false
	e.ledger.purge(round)
	e.current = e.begun
	if e.caught != nil {
		close(e.caught)
		e.caught = nil
	}
}

// catchUpWait bounds how long a request waits for events to be read.
const catchUpWait = 10 * time.Millisecond

// catchUp waits until all that has happened so far is queued.
func (e *events) catchUp() {
	e.mu.Lock()
	unread, err := unix.IoctlGetInt(e.fd, unix.TIOCINQ)
	if e.closed || !e.ledger.reading && (err != nil || unread == 0) {
		e.mu.Unlock()
		return
	}
	if e.caught == nil {
		e.caught = make(chan struct{})
	}
	caught := e.caught
	e.mu.Unlock()
	select {
	case <-caught:
	case <-time.After(catchUpWait):
	}
}

// overflow notes that the host's kernel has dropped events.
func (e *events) overflow() {
	e.count.overflows.Add(1)
	e.mu.Lock()
	e.ledger.forget()
	since := e.current
	e.mu.Unlock()
	e.log.Warn("the host's kernel had no room for file events: looking for what has changed")
	e.rescan(since)
}
