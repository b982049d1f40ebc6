package share

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// clockSlack is how far the times of files, which go by the kernel's tick, may lie
// behind the clock.
const clockSlack = 20 * time.Millisecond

// rescan looks in all watched directories for what has changed since a time, as
// the host's kernel or the queue had no room for the events: files with a later
// change of status, and names that the guest knows and that are no more. The
// guest may be told of its own changes, and twice of others.
func (e *events) rescan(since time.Time) {
	known := map[*node][]string{}
	e.f.table.mu.Lock()
	for k := range e.f.byName {
		known[k.dir] = append(known[k.dir], k.name)
	}
	e.f.table.mu.Unlock()
	var dirs []*node
	e.mu.Lock()
	for _, w := range e.byWD {
		dirs = append(dirs, w.nodes...)
	}
	e.mu.Unlock()
	for _, n := range dirs {
		if p, err := e.f.node(n.id); err == nil && p != nil {
			e.rescanDir(p, known[p], since.Add(-clockSlack))
			e.f.put(p)
		}
	}
}

// rescanDir does it for a directory, which its caller holds.
func (e *events) rescanDir(p *node, known []string, since time.Time) {
	for _, name := range known {
		var st unix.Stat_t
		n := e.f.seen(p, name)
		if n == nil {
			continue
		}
		if fstatat(p.fd, name, &st) != nil || uint64(st.Dev) != n.dev || st.Ino != n.ino {
			e.add(&op{kind: proto.Replay_DELETE, mode: n.kind, dir: p, name: name})
		}
		e.f.put(n)
	}
	fd, err := openat(unix.AT_FDCWD, p.proc, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			e.rescanEntry(p, name, since)
		}
		if err != nil {
			return
		}
	}
}

func (e *events) rescanEntry(p *node, name string, since time.Time) {
	var st unix.Statx_t
	err := unix.Statx(p.fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil || time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec)).Before(since) {
		return
	}
	o := &op{kind: proto.Replay_CREATE, mode: uint32(st.Mode) & unix.S_IFMT, dir: p, name: name}
	n := e.f.seen(p, name)
	defer e.f.putAny(n)
	old := st.Mask&unix.STATX_BTIME != 0 && time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).Before(since)
	if n != nil && n.ino == st.Ino || n == nil && old {
		o.kind = proto.Replay_MODIFY
	}
	if o.kind == proto.Replay_MODIFY && o.mode == unix.S_IFDIR {
		return // its entries tell
	}
	e.add(o)
}
