package share

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
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
	limit   int  // how many are watched at most

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
	past    int           // names in the past of all watches
	missed  time.Time     // since when changes have been lost; zero: none, or rescan looks
	space   chan struct{} // of capacity 1: the queue has room for rescan
}

// watch is a directory of the host that is watched, or a file that is shared by
// itself, for all nodes that are it.
type watch struct {
	id    fileID
	wd    int32
	nodes []*node
	// past are names that the guest knew, of which its watchers may know still,
	// with their kind. rescan looks whether they are there.
	past map[string]uint32
}

// maxPast bounds the names in all past. What the host removes of more isn't told
// when its event is lost.
const maxPast = 1 << 16

// counters are those of Events.
type counters struct {
	watched, unwatched, replayed, merged, void, degraded, lost, overflows atomic.Int64
	// warned: the log has it that something isn't watched. It comes and goes with
	// each folder past the limit, and at each boot.
	warned atomic.Bool
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
		written: map[fileID]struct{}{}, limit: maxWatches(),
		space: make(chan struct{}, 1), current: time.Now(),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	f.table.forgotten, f.table.unnamed = e.unwatch, e.unnamed
	return e
}

// maxWatches is half of what the host lets its user watch: an editor and a desktop
// of the same user want to watch as well.
func maxWatches() int {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if err != nil {
		return 4096 // half of the least that a kernel begins with
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 4096
	}
	return n / 2
}

// errLimit is why a directory isn't watched though the host may allow it.
var errLimit = errors.New("half of fs.inotify.max_user_watches is in use")

// watched are the host's events that count.
const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY |
	unix.IN_ATTRIB | unix.IN_CLOSE_WRITE

// watch begins to watch a directory, or a file that is shared by itself, which its
// caller holds. It is watched when this returns, before the guest knows of it: so there is no change that the
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
	full := w == nil && len(e.byWD) >= e.limit
	e.mu.Unlock()
	if known || closed || e.refused || !e.start() {
		return
	}
	wd, err := -1, errLimit
	if !full {
		// The same directory has the same number, however often it is added.
		mask := uint32(watched | unix.IN_EXCL_UNLINK)
		if n.isDir() {
			mask |= unix.IN_ONLYDIR
		}
		wd, err = unix.InotifyAddWatch(e.fd, n.proc, mask)
		err = os.NewSyscallError("inotify_add_watch", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		if !n.unwatched {
			n.unwatched = true
			e.count.unwatched.Add(1)
			if !e.count.warned.Swap(true) {
				e.log.Warn("changes of a shared folder are not seen by watchers in containers", "error", err)
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
	e.wg.Go(e.rescans)
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
		e.past -= len(w.past)
		w.past = nil
	}
}

// unnamed notes a name that the guest has forgotten.
func (e *events) unnamed(k entryKey, kind uint32) {
	if !e.active.Load() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.byID[fileID{k.dir.dev, k.dir.ino}]
	if w == nil {
		return
	}
	if _, is := w.past[k.name]; !is {
		if e.past == maxPast {
			return
		}
		e.past++
	}
	if w.past == nil {
		w.past = map[string]uint32{}
	}
	w.past[k.name] = kind
}

// removed notes that the guest was told that a name is gone. It may have forgotten
// the name after its event was read.
func (e *events) removed(k entryKey) {
	if k.dir == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.byID[fileID{k.dir.dev, k.dir.ino}]; w != nil {
		e.removedLocked(w, k.name)
	}
}

// removedLocked notes that a name in w is gone.
func (e *events) removedLocked(w *watch, name string) {
	if _, is := w.past[name]; is {
		delete(w.past, name)
		e.past--
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
	for p := (parked{events: e}); ; {
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
				if len(p.moves) > 0 {
					// The other half comes at once, if there is one.
					fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
					if n, _ := unix.Poll(fds, int(movedWait/time.Millisecond)); n > 0 {
						continue
					}
					p.leave(0, len(p.moves))
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
			p.handle(ev)
		}
	}
}

const (
	// movedWait is how long the second half of a rename is waited for: its
	// system call puts one right after the other.
	movedWait = 2 * time.Millisecond
	// maxParked is behind how many first halves of other renames it may come:
	// system calls of other processors.
	maxParked = 64
)

// parked are first halves of renames (IN_MOVED_FROM), in their order, whose second
// (IN_MOVED_TO) is still to come. What has none has left what is watched.
type parked struct {
	*events
	moves []event
}

// handle handles an event, and what of the parked came before it for sure.
func (p *parked) handle(ev event) {
	if ev.mask&unix.IN_MOVED_TO != 0 {
		if i := slices.IndexFunc(p.moves, func(m event) bool { return m.cookie == ev.cookie }); i >= 0 {
			from := p.moves[i]
			p.moves = slices.Delete(p.moves, i, i+1)
			p.settle(ev)
			if p.own(ev, unix.IN_MOVED_TO) { // the guest has its name; the old one went before it came
				p.movedOut(from)
				return
			}
			p.moved(from, ev)
			return
		}
	}
	p.settle(ev)
	switch {
	case ev.mask&unix.IN_MOVED_FROM != 0:
		if p.own(ev, unix.IN_MOVED_FROM) {
			return
		}
		if len(p.moves) == maxParked {
			p.leave(0, 1)
		}
		p.moves = append(p.moves, ev)
	case ev.mask&unix.IN_MOVED_TO != 0:
		if !p.own(ev, unix.IN_MOVED_TO) {
			p.movedIn(ev)
		}
	default:
		p.events.handle(ev)
	}
}

// settle tells of the parked rename of the name that ev is about: that something
// has it again means that it was gone.
func (p *parked) settle(ev event) {
	i := slices.IndexFunc(p.moves, func(m event) bool { return m.wd == ev.wd && m.name == ev.name })
	switch {
	case ev.mask&unix.IN_Q_OVERFLOW != 0: // the other halves may be lost
		p.leave(0, len(p.moves))
	case i >= 0:
		p.leave(i, i+1)
	}
}

// leave takes those from i to j for moved to where nothing is watched.
func (p *parked) leave(i, j int) {
	for _, m := range p.moves[i:j] {
		p.movedOut(m)
	}
	p.moves = slices.Delete(p.moves, i, j)
}

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
	if w == nil {
		return false
	}
	own := e.ledger.take(change{w.id, ev.name, kind}, ev.mask&unix.IN_ISDIR != 0)
	if own && (kind == unix.IN_DELETE || kind == unix.IN_MOVED_FROM) {
		e.removedLocked(w, ev.name) // else when the guest has been told
	}
	return own
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
	case ev.name == "" && e.ofDir(ev): // its parent's event is taken
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

// ofDir tells whether an event is of something that is, or was, a directory.
func (e *events) ofDir(ev event) bool {
	nodes := e.dirs(ev)
	return len(nodes) == 0 || nodes[0].isDir()
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
	if ev.name == "" { // a file that is shared by itself
		err = fstat(p.fd, st)
	} else {
		err = fstatat(p.fd, ev.name, st)
	}
	if err != nil {
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
	e.missLocked(e.current)
	e.mu.Unlock()
	e.log.Warn("the host's kernel had no room for file events: looking for what has changed")
	e.signal()
	e.calmed()
}

// missLocked has what changed since a time looked for once the queue is empty.
func (e *events) missLocked(since time.Time) {
	if e.missed.IsZero() || since.Before(e.missed) {
		e.missed = since
	}
}
