package share

import (
	"errors"
	"io"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// clockSlack is how far the times of files, which go by the kernel's tick, may lie
// behind the clock.
const clockSlack = 20 * time.Millisecond

// rescans looks for what has been lost until close: each time that all else has
// been told, as more would be lost otherwise.
func (e *events) rescans() {
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.space:
		}
		for since := e.caughtUp(); !since.IsZero() && e.ctx.Err() == nil; since = e.caughtUp() {
			e.rescan(since)
		}
	}
}

// caughtUp tells since when changes were lost, once all others are told and if
// there is somebody to tell; a zero time for none.
func (e *events) caughtUp() (since time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.thread.Load() != 0 && e.queue.length() == 0 && len(e.queue.sent) == 0 {
		since, e.missed = e.missed, time.Time{}
	}
	return since
}

// rescan looks in all watched directories for what has changed since a time, as
// the host's kernel or the queue had no room for the events, or nobody took them:
// files with a later change of status, and names that the guest knew and that are
// no more. The guest may be told of its own changes, and twice of others.
func (e *events) rescan(since time.Time) {
	known := map[*node][]string{}
	e.f.table.mu.Lock()
	for k := range e.f.byName {
		known[k.dir] = append(known[k.dir], k.name)
	}
	e.f.table.mu.Unlock()
	var dirs []*node
	past := map[*node]map[string]uint32{}
	e.mu.Lock()
	for _, w := range e.byWD {
		for _, n := range w.nodes {
			dirs = append(dirs, n)
			past[n] = maps.Clone(w.past)
		}
	}
	e.mu.Unlock()
	r := rescan{e, since}
	for _, n := range dirs {
		if e.ctx.Err() != nil {
			return
		}
		if p, err := e.f.node(n.id); err == nil && p != nil {
			if p.isDir() {
				r.past(p, past[p])
				r.dir(p, known[p])
			} else {
				r.file(p)
			}
			e.f.put(p)
		}
	}
}

// rescan is one search.
type rescan struct {
	*events
	since time.Time
}

// tell adds o when there is room for it: more than that is still to come.
func (r rescan) tell(o *op) {
	o.since = r.since
	for {
		r.mu.Lock()
		room := r.queue.length() < calm
		r.mu.Unlock()
		if room {
			r.add(o)
			return
		}
		select {
		case <-r.ctx.Done():
			return
		case <-r.space:
		}
	}
}

// later tells whether a time in a file's attributes may be one after since.
func (r rescan) later(t unix.StatxTimestamp) bool {
	return !time.Unix(t.Sec, int64(t.Nsec)).Before(r.since.Add(-clockSlack))
}

// file does it for a file that is shared by itself.
func (r rescan) file(n *node) {
	var st unix.Statx_t
	if unix.Statx(n.fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st) == nil && r.later(st.Ctime) {
		r.tell(&op{kind: proto.Replay_MODIFY, mode: n.kind, dir: n})
	}
}

// past does it for names in a directory that the guest knew.
func (r rescan) past(p *node, names map[string]uint32) {
	for name, kind := range names {
		var st unix.Stat_t
		if err := fstatat(p.fd, name, &st); err == nil {
			r.unnamed(entryKey{p, name}, kind)
		} else if !gone(err) {
			r.unseen(p, name, err)
		} else if n := r.f.seen(p, name); n != nil { // known again
			r.f.put(n)
			r.removed(entryKey{p, name})
		} else {
			r.tell(&op{kind: proto.Replay_DELETE, mode: kind, dir: p, name: name})
		}
	}
}

// dir does it for a directory, which its caller holds.
func (r rescan) dir(p *node, known []string) {
	for _, name := range known {
		var st unix.Stat_t
		n := r.f.seen(p, name)
		if n == nil {
			continue
		}
		err := fstatat(p.fd, name, &st)
		if err != nil && !gone(err) {
			r.unseen(p, name, err)
		} else if err != nil || uint64(st.Dev) != n.dev || st.Ino != n.ino {
			r.tell(&op{kind: proto.Replay_DELETE, mode: n.kind, dir: p, name: name})
		}
		r.f.put(n)
	}
	fd, err := openat(unix.AT_FDCWD, p.proc, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		if !gone(err) {
			r.unseen(p, ".", err)
		}
		return
	}
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			r.entry(p, name)
		}
		if err != nil && err != io.EOF {
			r.unseen(p, ".", err)
		}
		if err != nil || r.ctx.Err() != nil {
			return
		}
	}
}

// gone tells whether an error says that something isn't there, rather than that
// nobody knows.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// unseen tells people what couldn't be looked at.
func (r rescan) unseen(p *node, name string, err error) {
	r.log.Warn("watchers in containers may have missed changes of a shared file", "inode", p.ino, "name", name, "error", err)
}

func (r rescan) entry(p *node, name string) {
	var st unix.Statx_t
	err := unix.Statx(p.fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil || !r.later(st.Ctime) {
		return
	}
	o := &op{kind: proto.Replay_CREATE, mode: uint32(st.Mode) & unix.S_IFMT, dir: p, name: name}
	n := r.f.seen(p, name)
	defer r.f.putAny(n)
	old := st.Mask&unix.STATX_BTIME != 0 && !r.later(st.Btime)
	if n != nil && n.ino == st.Ino || n == nil && old {
		o.kind = proto.Replay_MODIFY
	}
	if o.kind == proto.Replay_MODIFY && o.mode == unix.S_IFDIR {
		return // its entries tell
	}
	r.tell(o)
}
