package share

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

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
	for _, name := range []string{"kept", "changed", "removed", "replaced"} {
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
	time.Sleep(5 * clockSlack) // that the changes are later than what is there
	since := time.Now()
	check(t, os.WriteFile(dir+"/changed", []byte("y"), 0o644))
	check(t, os.Remove(dir+"/removed"))
	check(t, os.WriteFile(dir+"/new", nil, 0o644))
	check(t, os.WriteFile(dir+"/replacing", nil, 0o644))
	check(t, os.Rename(dir+"/replacing", dir+"/replaced"))
	upTo(t, lines, "RENAME replacingreplaced")
	tree.server.fs().events.rescan(since)
	check(t, os.Mkdir(dir+"/last", 0o755))
	got := upTo(t, lines, "CREATE last")
	slices.Sort(got)
	want := []string{"CREATE last", "CREATE new", "CREATE replaced", "DELETE removed", "DELETE replaced", "MODIFY changed"}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
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
	l.begin(c)
	if !l.take(c) || l.take(c) || l.end(c, true) {
		t.Error("a change of the guest's is not taken once")
	}
	l.begin(c)
	if !l.take(c) || !l.end(c, false) {
		t.Error("an event of the host's that was taken for a change that failed is not given back")
	}
	l.round++
	l.begin(c)
	l.end(c, true)
	l.purge(l.round)
	if len(l.names) != 1 {
		t.Error("a change is forgotten before its event can have been read")
	}
	l.round++
	if l.purge(l.round); len(l.names) != 0 {
		t.Error("a change is kept whose event must have been read")
	}
	st := unix.Stat_t{Dev: 1, Ino: 3, Size: 7, Mtim: unix.Timespec{Sec: 5}, Ctim: unix.Timespec{Sec: 6}}
	id := fileID{1, 3}
	l.work(id)
	if !l.wrote(&st) {
		t.Error("an event is not the guest's while it writes")
	}
	l.worked(id, &st, content|attributes)
	if !l.wrote(&st) || !l.changed(&st) {
		t.Error("the file as the guest left it is not the guest's")
	}
	st.Size++
	if l.wrote(&st) {
		t.Error("the file as the host left it is the guest's")
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
