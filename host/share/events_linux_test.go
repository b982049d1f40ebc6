package share

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"
	gproto "google.golang.org/protobuf/proto"

	"sampan/proto"
)

// told are the replays that an agent is asked for, by a tree; it makes none.
func told(t *testing.T) (*Tree, <-chan string) {
	t.Helper()
	lines := make(chan string, 1000)
	tree := NewTree(Options{Replays: func(context.Context) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		go func() {
			in := bufio.NewReader(theirs)
			protodelim.MarshalTo(theirs, &proto.Replayed{Thread: 4711})
			for {
				var r proto.Replay
				if protodelim.UnmarshalFrom(in, &r) != nil {
					return
				}
				lines <- fmt.Sprintf("%v %s%s", r.Kind, r.Name, r.ToName)
				protodelim.MarshalTo(theirs, &proto.Replayed{Seq: r.Seq})
			}
		}()
		return ours, nil
	}})
	t.Cleanup(func() { tree.Close() })
	return tree, lines
}

// upTo collects lines up to one.
func upTo(t *testing.T, lines <-chan string, last string) []string {
	t.Helper()
	var got []string
	for end := time.After(10 * time.Second); ; {
		select {
		case line := <-lines:
			if got = append(got, line); line == last {
				return got
			}
		case <-end:
			t.Fatalf("no %q, but %q", last, got)
		}
	}
}

// Events that the host's kernel had no room for are made up for by looking.
func TestRescan(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"kept", "changed", "removed", "replaced", "forgotten"} {
		check(t, os.WriteFile(dir+"/"+name, []byte("x"), 0o644))
	}
	tree, lines := told(t)
	export, err := tree.Export(dir, false)
	check(t, err)
	defer export.Close()
	initServer(t, tree.server)
	root, _ := lookup(t, tree.server, 1, export.Name())
	for _, name := range []string{"kept", "changed", "removed", "replaced"} {
		lookup(t, tree.server, root, name)
	}
	forgotten, _ := lookup(t, tree.server, root, "forgotten")
	tree.server.fs().Forget(forgotten, 1)
	time.Sleep(5 * clockSlack) // that the changes are later than what is there
	since := time.Now()
	check(t, os.WriteFile(dir+"/changed", []byte("y"), 0o644))
	check(t, os.Remove(dir+"/removed"))
	check(t, os.WriteFile(dir+"/new", nil, 0o644))
	check(t, os.WriteFile(dir+"/replacing", nil, 0o644))
	check(t, os.Rename(dir+"/replacing", dir+"/replaced"))
	upTo(t, lines, "RENAME replacingreplaced")
	e := tree.server.fs().events
	past := func() (names int) {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.past
	}
	if got := past(); got != 1 {
		t.Errorf("%d names are remembered, want one", got)
	}
	check(t, os.Remove(dir+"/forgotten"))
	upTo(t, lines, "DELETE forgotten")
	check(t, os.WriteFile(dir+"/answered", nil, 0o644)) // told after the answer
	upTo(t, lines, "CREATE answered")
	for end := time.Now().Add(10 * time.Second); past() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d names are remembered that were removed", past())
		}
	}
	check(t, os.Remove(dir+"/answered"))
	upTo(t, lines, "DELETE answered")
	p, err := tree.server.fs().node(root)
	check(t, err)
	e.unnamed(entryKey{p, "forgotten"}, unix.S_IFREG)              // as if that had been lost
	e.unnamed(entryKey{p, strings.Repeat("x", 300)}, unix.S_IFREG) // an error that doesn't say it's gone
	tree.server.fs().put(p)
	tree.server.fs().events.rescan(since)
	check(t, os.Mkdir(dir+"/last", 0o755))
	got := upTo(t, lines, "CREATE last")
	slices.Sort(got)
	want := []string{"CREATE last", "CREATE new", "CREATE replaced", "DELETE forgotten", "DELETE removed", "DELETE replaced", "MODIFY changed"}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// A name that the guest has forgotten is remembered until its removal is told, as
// that may be lost.
func TestForgottenIsLost(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/forgotten", nil, 0o644))
	tree, lines := told(t)
	export, err := tree.Export(dir, false)
	check(t, err)
	defer export.Close()
	initServer(t, tree.server)
	root, _ := lookup(t, tree.server, 1, export.Name())
	forgotten, _ := lookup(t, tree.server, root, "forgotten")
	tree.server.fs().Forget(forgotten, 1)
	check(t, os.WriteFile(dir+"/there", nil, 0o644))
	upTo(t, lines, "CREATE there")
	e := tree.server.fs().events
	ev := event{name: "forgotten", mask: unix.IN_DELETE}
	is := func() (known bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		for wd, w := range e.byWD {
			if _, is := w.past["forgotten"]; is {
				ev.wd, known = wd, true
			}
		}
		return known
	}
	if !is() {
		t.Fatal("the name isn't remembered")
	}
	if e.own(ev, unix.IN_DELETE) { // read, and then the op is lost
		t.Fatal("the host's removal is the guest's")
	}
	if !is() {
		t.Error("a name is no longer remembered before the guest is told that it is gone")
	}
}

// Nothing is watched that isn't exported, or that the guest doesn't know.
func TestWatched(t *testing.T) {
	dir := t.TempDir()
	check(t, os.MkdirAll(dir+"/a/b", 0o755))
	tree, _ := told(t)
	export, err := tree.Export(dir, false)
	check(t, err)
	again, err := tree.Export(dir, true)
	check(t, err)
	initServer(t, tree.server)
	is := func(want int64) {
		t.Helper()
		if got := tree.Events().Watched; got != want {
			t.Errorf("%d directories are watched, want %d", got, want)
		}
	}
	is(0)
	root, _ := lookup(t, tree.server, 1, export.Name())
	is(1)
	a, _ := lookup(t, tree.server, root, "a")
	is(2)
	lookup(t, tree.server, 1, again.Name())
	is(2) // the same
	tree.server.fs().Forget(a, 1)
	is(1)
	export.Close()
	is(1)
	again.Close()
	is(0)
}

// The ledger takes each change for the guest's once, gives back what it took
// wrongly, and forgets what can't come any more.
func TestLedger(t *testing.T) {
	l := newLedger()
	c := change{fileID{1, 2}, "x", unix.IN_CREATE}
	made, failed := ends{done: true, unread: true}, ends{unread: true}
	n := l.begin(c)
	if !l.take(c, false) || l.take(c, false) || l.end(n, made) {
		t.Error("a change of the guest's is not taken once")
	}
	n = l.begin(c)
	if !l.take(c, true) || !l.end(n, failed) || !n.dir {
		t.Error("an event of the host's that was taken for a change that failed is not given back")
	}
	l.round++
	l.end(l.begin(c), made)
	if l.purge(l.round); len(l.names) != 1 {
		t.Error("a change is forgotten before its event can have been read")
	}
	l.round++
	if l.purge(l.round); len(l.names) != 0 {
		t.Error("a change is kept whose event must have been read")
	}
	// A rename to what has the name already has no event.
	if l.end(l.begin(c), ends{done: true}); l.take(c, false) {
		t.Error("an event is taken for the guest's, whose own have all been handled")
	}
	// Events that are lost while a change is under way.
	n = l.begin(c)
	l.forget()
	again := l.begin(c)
	l.end(n, made)
	if again.open != 1 || again.left != 1 || !l.take(c, false) {
		t.Errorf("the end of a change that was forgotten counts for the next: %+v", again)
	}
}

// What the guest does to a file is its own until it is read, and not longer.
func TestStamps(t *testing.T) {
	l := newLedger()
	st := unix.Stat_t{Dev: 1, Ino: 3, Size: 7, Mode: 0o644, Mtim: unix.Timespec{Sec: 5}, Ctim: unix.Timespec{Sec: 6}}
	id := fileID{1, 3}
	s := l.work(id, content|attributes)
	if !l.wrote(&st) || !l.changed(&st) {
		t.Error("an event is not the guest's while it writes")
	}
	l.worked(s, &st, content|attributes, true)
	if !l.wrote(&st) || !l.changed(&st) {
		t.Error("the file as the guest left it is not the guest's")
	}
	host := st
	host.Size++
	if l.wrote(&host) {
		t.Error("the file as the host left it is the guest's")
	}
	if host.Mode = 0o600; l.changed(&host) {
		t.Error("a mode that the host set is the guest's")
	}
	host = st
	host.Ctim.Sec++
	if l.changed(&host) {
		t.Error("what the host changed later is the guest's")
	}
	// Renamed by the guest: the event of before is still its own.
	s = l.work(id, 0)
	if !l.changed(&host) {
		t.Error("an event is not the guest's while it renames")
	}
	if l.worked(s, &host, 0, true); !l.changed(&host) {
		t.Error("an event is not the guest's when it has renamed the file since")
	}
	l.worked(l.work(id, content), &host, content, false)
	if len(l.files) != 0 {
		t.Error("a file is remembered of which all events have been read")
	}
	s = l.work(id, content)
	if l.changed(&host) {
		t.Error("while the guest writes, a mode that the host sets is the guest's")
	}
	l.worked(s, &host, content, false)
	// A folder's ctime moves with each name that the guest makes in it.
	dir := unix.Stat_t{Dev: 1, Ino: 4, Mode: unix.S_IFDIR | 0o700, Ctim: unix.Timespec{Sec: 6}}
	l.worked(l.work(fileID{1, 4}, attributes), &dir, attributes, true)
	if dir.Ctim.Sec++; !l.changed(&dir) {
		t.Error("a folder in which the guest has made something since is not the guest's")
	}
	if dir.Mode = unix.S_IFDIR | 0o755; l.changed(&dir) {
		t.Error("a folder's mode that the host set is the guest's")
	}
}

// A change of content that waits takes up the next; one of a name parts them.
func TestQueueMerges(t *testing.T) {
	q, dir := newQueue(), &node{id: 2}
	for i, want := range []bool{false, true, false, false, true} {
		kind := proto.Replay_MODIFY
		if i == 2 {
			kind = proto.Replay_DELETE
		}
		if got := q.push(&op{kind: kind, dir: dir, name: "f"}); got != want {
			t.Errorf("change %d merged: %v", i, got)
		}
	}
	for n := 0; ; n++ {
		o := q.next()
		if o == nil {
			if n != 3 || len(q.sent) != 3 {
				t.Errorf("%d changes are sent", n)
			}
			break
		}
	}
	for _, o := range q.sent {
		q.done(o)
	}
	if len(q.byEntry) != 0 || len(q.sent) != 0 {
		t.Errorf("left: %v, %v", q.byEntry, q.sent)
	}
}

// The thread that replays changes nothing on the host, whatever it asks for.
func TestReplayChangesNothing(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/f", []byte("x"), 0o644))
	tree, lines := told(t)
	export, err := tree.Export(dir, false)
	check(t, err)
	defer export.Close()
	s := tree.server
	initServer(t, s)
	root, _ := lookup(t, s, 1, export.Name())
	f, _ := lookup(t, s, root, "f")
	check(t, os.WriteFile(dir+"/g", nil, 0o644)) // begins a session
	upTo(t, lines, "CREATE g")
	for _, in := range [][]byte{
		request(10, root, "f\x00"),                                                         // UNLINK
		request(9, root, uint32(0o755), uint32(0), "d\x00"),                                // MKDIR
		request(8, root, uint32(0o100644), uint32(0), uint32(0), uint32(0), "n\x00"),       // MKNOD
		request(6, root, "l\x00x\x00"),                                                     // SYMLINK
		request(12, root, root, "f\x00h\x00"),                                              // RENAME
		request(13, root, f, "h\x00"),                                                      // LINK
		request(4, f, uint32(1<<3), uint32(0), string(make([]byte, 80))),                   // SETATTR: size
		request(14, f, uint32(os.O_WRONLY|os.O_TRUNC), uint32(0)),                          // OPEN
		request(35, root, uint32(os.O_RDWR), uint32(0o644), uint32(0), uint32(0), "c\x00"), // CREATE
		request(24, f, "user.x\x00"),                                                       // REMOVEXATTR
	} {
		binary.LittleEndian.PutUint32(in[32:], 4711) // the caller's pid
		if code, _ := call(t, s, in); code.Ok() {
			t.Errorf("request %d succeeds", in[4])
		}
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	b, err := os.ReadFile(dir + "/f")
	check(t, err)
	if len(entries) != 2 || string(b) != "x" {
		t.Errorf("the folder has %v, the file %q", entries, b)
	}
}

// shown is a folder that the guest knows, and what its agent is told.
func shown(t *testing.T) (dir string, tree *Tree, root uint64, lines <-chan string) {
	t.Helper()
	dir = t.TempDir()
	tree, lines = told(t)
	export, err := tree.Export(dir, false)
	check(t, err)
	t.Cleanup(func() { export.Close() })
	initServer(t, tree.server)
	root, _ = lookup(t, tree.server, 1, export.Name())
	return dir, tree, root, lines
}

// atOnce has the events of what do does be read together.
func atOnce(tree *Tree, do func()) {
	e := tree.server.fs().events
	e.mu.Lock()
	defer e.mu.Unlock()
	do()
}

// What moves away is told before what comes in its place, in whatever way.
func TestMovedAwayAndReplaced(t *testing.T) {
	dir, tree, _, lines := shown(t)
	away := t.TempDir()
	check(t, os.WriteFile(dir+"/f", nil, 0o644))
	check(t, os.WriteFile(dir+"/g", nil, 0o644))
	upTo(t, lines, "CREATE g")
	atOnce(tree, func() {
		check(t, os.Rename(dir+"/f", away+"/f"))
		check(t, os.WriteFile(dir+"/f", nil, 0o644))
		check(t, os.Rename(dir+"/f", away+"/f2"))
		check(t, os.Rename(dir+"/g", dir+"/f"))
	})
	want := []string{"RENAME f" + elsewhere, "CREATE f", "RENAME f" + elsewhere, "RENAME gf"}
	got := upTo(t, lines, "RENAME gf")
	got = slices.DeleteFunc(got, func(line string) bool { return strings.HasPrefix(line, "WRITTEN") })
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// However many files move away, few wait for their other half.
func TestParked(t *testing.T) {
	dir, tree, _, lines := shown(t)
	check(t, os.Mkdir(dir+"/first", 0o755))
	upTo(t, lines, "CREATE first")
	e := tree.server.fs().events
	e.mu.Lock()
	var wd int32
	for wd = range e.byWD {
	}
	e.mu.Unlock()
	p := parked{events: e}
	for i := range 1000 {
		p.handle(event{wd: wd, mask: unix.IN_MOVED_FROM, cookie: uint32(i + 1), name: fmt.Sprint(i)})
		if len(p.moves) > maxParked {
			t.Fatalf("%d wait", len(p.moves))
		}
	}
	if upTo(t, lines, "RENAME 900"+elsewhere); len(p.moves) != maxParked {
		t.Errorf("%d wait, want %d", len(p.moves), maxParked)
	}
}

// A stream that breaks loses changes, which are counted, and looked for by the
// next.
func TestStreamBreaks(t *testing.T) {
	lines := make(chan string, 100)
	sessions := 0
	tree := NewTree(Options{Replays: func(context.Context) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		sessions++
		go func(breaks bool) {
			in := bufio.NewReader(theirs)
			protodelim.MarshalTo(theirs, &proto.Replayed{Thread: 4711})
			for {
				var r proto.Replay
				if protodelim.UnmarshalFrom(in, &r) != nil {
					return
				}
				if breaks {
					theirs.Close()
					return
				}
				lines <- fmt.Sprintf("%v %s%s", r.Kind, r.Name, r.ToName)
				protodelim.MarshalTo(theirs, &proto.Replayed{Seq: r.Seq})
			}
		}(sessions == 1)
		return ours, nil
	}})
	defer tree.Close()
	dir := t.TempDir()
	export, err := tree.Export(dir, false)
	check(t, err)
	defer export.Close()
	initServer(t, tree.server)
	lookup(t, tree.server, 1, export.Name())
	check(t, os.WriteFile(dir+"/f", nil, 0o644))
	upTo(t, lines, "CREATE f")
	if got := tree.Events(); got.Lost == 0 {
		t.Errorf("nothing is lost: %+v", got)
	}
}

// A search that finds more than the queue may hold tells of all.
func TestRescanOfMany(t *testing.T) {
	dir, tree, _, lines := shown(t)
	e := tree.server.fs().events
	since := time.Now()
	const many = 3 * calm
	for i := range many {
		check(t, os.WriteFile(fmt.Sprint(dir, "/", i), nil, 0o644))
	}
	upTo(t, lines, fmt.Sprint("CREATE ", many-1))
	e.mu.Lock()
	e.missLocked(since)
	e.mu.Unlock()
	e.calmed()
	seen := map[string]bool{}
	for end := time.After(30 * time.Second); len(seen) < many; {
		select {
		case line := <-lines:
			if strings.HasPrefix(line, "CREATE") { // not the end of writing
				seen[line] = true
			}
		case <-end:
			t.Fatalf("only %d of %d are told", len(seen), many)
		}
	}
}

// Half of what the host allows is watched, and the rest counted.
func TestWatchLimit(t *testing.T) {
	dir, tree, root, lines := shown(t)
	check(t, os.MkdirAll(dir+"/a", 0o755))
	upTo(t, lines, "CREATE a")
	e := tree.server.fs().events
	if e.limit < 1 {
		t.Errorf("the limit is %d", e.limit)
	}
	e.limit = 1
	warned := warnings{slog.NewTextHandler(io.Discard, nil), new(atomic.Int64)}
	e.log = slog.New(warned)
	a, _ := lookup(t, tree.server, root, "a")
	if got := tree.Events(); got.Watched != 1 || got.Unwatched != 1 {
		t.Errorf("with a limit of 1: %+v", got)
	}
	tree.server.fs().Forget(a, 1)
	if got := tree.Events(); got.Watched != 1 || got.Unwatched != 0 {
		t.Errorf("when the guest has forgotten it: %+v", got)
	}
	if lookup(t, tree.server, root, "a"); tree.Events().Unwatched != 1 {
		t.Errorf("when it is there again: %+v", tree.Events())
	}
	if n := warned.n.Load(); n != 1 {
		t.Errorf("the log has %d warnings, want one for all of the machine's life", n)
	}
}

// warnings counts those of a log.
type warnings struct {
	slog.Handler
	n *atomic.Int64
}

func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		w.n.Add(1)
	}
	return nil
}

// A file that is shared by itself is watched, as the inode that it was: an editor
// that puts another in its place changes nothing for containers, as with Docker.
func TestFileEvents(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/conf"
	check(t, os.WriteFile(path, []byte("one"), 0o644))
	tree, lines := told(t)
	export, err := tree.Export(path, false)
	check(t, err)
	initServer(t, tree.server)
	f, _ := lookup(t, tree.server, 1, export.Name())
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	defer file.Close()
	_, err = file.Write([]byte("two"))
	check(t, err)
	upTo(t, lines, "MODIFY ")
	check(t, file.Close())
	upTo(t, lines, "WRITTEN ")
	check(t, os.Chmod(path, 0o600))
	upTo(t, lines, "ATTRIB ")
	e := tree.server.fs().events
	e.mu.Lock()
	e.missLocked(time.Now().Add(-time.Minute))
	e.mu.Unlock()
	e.calmed()
	upTo(t, lines, "MODIFY ")
	// The file is another now, and the one that is shared has one name less.
	check(t, os.WriteFile(dir+"/new", []byte("three"), 0o644))
	check(t, os.Rename(dir+"/new", path))
	upTo(t, lines, "ATTRIB ")
	tree.server.fs().Forget(f, 1)
	export.Close()
	if got := tree.Events(); got.Watched != 0 {
		t.Errorf("the file is still watched: %+v", got)
	}
}

// The longest that there is to tell fits a message.
func TestLongestReplay(t *testing.T) {
	long := func(n int) []byte { return bytes.Repeat([]byte("n"), n) }
	size := gproto.Size(&proto.Replay{
		Seq: ^uint32(0), Kind: proto.Replay_RENAME, Mode: ^uint32(0), Dir: ^uint64(0), ToDir: ^uint64(0),
		Path: long(unix.PathMax), ToPath: long(unix.PathMax), Name: long(255), ToName: long(255),
	})
	if size > proto.MaxReplay {
		t.Errorf("%d bytes, and the agent takes %d", size, proto.MaxReplay)
	}
}

// A rename that couldn't be told is told in two halves before all that waits,
// which isn't copied for it.
func TestQueueSplits(t *testing.T) {
	tree, _ := told(t)
	f := tree.server.fs()
	e := &events{f: f, log: f.log, queue: newQueue(), count: &counters{}, wake: make(chan struct{}, 1), space: make(chan struct{}, 1)}
	dir := &node{id: 2}
	const many = 1000
	e.queue.push(&op{kind: proto.Replay_RENAME, dir: dir, name: "a", to: dir, toName: "b"})
	first := e.queue.next()
	e.queue.push(&op{kind: proto.Replay_DELETE, dir: dir, name: "b"})
	for i := range many {
		e.queue.push(&op{kind: proto.Replay_CREATE, dir: dir, name: fmt.Sprint(i)})
	}
	before := &e.queue.waiting[0]
	e.answered(&proto.Replayed{Seq: first.seq, Errno: uint32(unix.EXDEV)})
	if before != &e.queue.waiting[0] || e.queue.length() != many+3 {
		t.Errorf("%d changes wait, or were copied", e.queue.length())
	}
	var got []string
	for range 4 {
		o := e.queue.next()
		got = append(got, fmt.Sprint(o.kind, " ", o.name))
	}
	if want := []string{"DELETE a", "CREATE b", "DELETE b", "CREATE 0"}; !slices.Equal(got, want) {
		t.Errorf("told in the order %q, want %q", got, want)
	}
	if list := e.queue.byEntry[entryKey{dir, "b"}]; len(list) != 2 || list[0].kind != proto.Replay_CREATE {
		t.Errorf("the changes of b are %v", list)
	}
}

// In a flood a file's content is told with its creation, but not the end of
// writing, nor what comes after a change of the name.
func TestQueueFolds(t *testing.T) {
	q, dir := newQueue(), &node{id: 2}
	push := func(kind proto.Replay_Kind, name string) bool { return q.push(&op{kind: kind, dir: dir, name: name}) }
	if push(proto.Replay_CREATE, "first"); push(proto.Replay_MODIFY, "first") {
		t.Error("without a flood a change is told with the creation")
	}
	for i := range calm {
		push(proto.Replay_CREATE, fmt.Sprint(i))
	}
	push(proto.Replay_CREATE, "f")
	for _, c := range []struct {
		kind   proto.Replay_Kind
		merged bool
	}{
		{proto.Replay_MODIFY, true}, {proto.Replay_ATTRIB, true}, {proto.Replay_WRITTEN, false}, {proto.Replay_DELETE, false},
		{proto.Replay_ATTRIB, false},
	} {
		if got := push(c.kind, "f"); got != c.merged {
			t.Errorf("%v merged: %v", c.kind, got)
		}
	}
}
