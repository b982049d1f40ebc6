package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/agent"
	"sampan/host/share"
)

// shared is a folder of the host, mounted with the server and the agent that
// the product has, but without a machine in between.
type shared struct {
	tree      *share.Tree
	host, mnt string // the folder, and the same as a guest sees it
}

func newShared(t *testing.T) *shared {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting FUSE without a helper needs root; the end-to-end tests cover other users")
	}
	s := &shared{host: t.TempDir()}
	root := t.TempDir()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.tree = share.NewTree(share.Options{Replays: func(context.Context) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		go func() {
			if err := agent.Replay(theirs, root); err != nil {
				t.Error(err)
			}
		}()
		return ours, nil
	}})
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", dev)
	if err := unix.Mount("sampan", root, "fuse", unix.MS_NODEV, opts); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		go func() {
			in, out := make([]byte, 2<<20), make([]byte, 2<<20)
			for {
				n, err := unix.Read(dev, in)
				if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
					continue
				}
				if err != nil {
					return
				}
				if n, _ := s.tree.Server().HandleRequest([][]byte{in[:n]}, [][]byte{out}); n > 0 {
					unix.Write(dev, out[:n])
				}
			}
		}()
	}
	export, err := s.tree.Export(s.host, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.tree.Close()
		unix.Unmount(root, unix.MNT_DETACH)
		export.Close()
		unix.Close(dev)
	})
	s.mnt = filepath.Join(root, export.Name())
	return s
}

// watcher is a process of the guest that watches directories, without and with
// those made later.
type watcher struct {
	t     *testing.T
	dir   string
	file  *os.File
	fd    int
	names map[int32]string
	lines chan string
}

const watchedKinds = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVE | unix.IN_DELETE_SELF | unix.IN_CLOSE_WRITE

func newWatcher(t *testing.T, dir string, below ...string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, dir: dir, fd: fd, file: os.NewFile(uintptr(fd), "inotify"), names: map[int32]string{}, lines: make(chan string, 1000)}
	for _, name := range append([]string{""}, below...) {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, name), watchedKinds)
		if err != nil {
			t.Fatal(err)
		}
		w.names[int32(wd)] = name
	}
	t.Cleanup(func() { w.file.Close() })
	go w.read()
	return w
}

func (w *watcher) read() {
	in := bufio.NewReaderSize(w.file, 64<<10)
	kinds := map[uint32]string{unix.IN_CREATE: "create", unix.IN_DELETE: "delete", unix.IN_MODIFY: "modify", unix.IN_ATTRIB: "attrib",
		unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_DELETE_SELF: "gone", unix.IN_CLOSE_WRITE: "written"}
	cookies := map[uint32]int{}
	for {
		var b [unix.SizeofInotifyEvent]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			close(w.lines)
			return
		}
		word := func(i int) uint32 { return uint32(b[i]) | uint32(b[i+1])<<8 | uint32(b[i+2])<<16 | uint32(b[i+3])<<24 }
		name := make([]byte, word(12))
		io.ReadFull(in, name)
		line := kinds[word(4)&^unix.IN_ISDIR]
		if line == "" {
			continue
		}
		line += " " + filepath.Join(w.names[int32(word(0))], strings.TrimRight(string(name), "\x00"))
		if c := word(8); c != 0 {
			if cookies[c] == 0 {
				cookies[c] = len(cookies) + 1
			}
			line += fmt.Sprintf(" #%d", cookies[c])
		}
		if word(4)&unix.IN_ISDIR != 0 {
			line += " dir"
		}
		w.lines <- line
	}
}

// until waits for a line, and returns all up to it.
func (w *watcher) until(last string) []string {
	w.t.Helper()
	var got []string
	timeout := time.After(10 * time.Second)
	for {
		select {
		case line := <-w.lines:
			got = append(got, line)
			if line == last {
				return got
			}
		case <-timeout:
			w.t.Fatalf("no %q, but %q", last, got)
		}
	}
}

// want does something and wants exactly these events of it, but for repeated
// ones.
func (w *watcher) want(do func(), want ...string) {
	w.t.Helper()
	do()
	got := slices.Compact(w.until(want[len(want)-1]))
	// Whether it is told of depends on how soon the file is renamed.
	got = slices.DeleteFunc(got, func(line string) bool { return line == "modify .old.tmp" || line == "written .old.tmp" })
	if !slices.Equal(got, want) {
		w.t.Errorf("events %q, want %q", got, want)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReplays(t *testing.T) {
	s := newShared(t)
	at := func(name string) string { return filepath.Join(s.host, name) }
	in := func(name string) string { return filepath.Join(s.mnt, name) }
	must(t, os.Mkdir(at("d"), 0o755), os.WriteFile(at("old"), []byte("x"), 0o644))
	w := newWatcher(t, s.mnt, "d")
	w.want(func() { must(t, os.WriteFile(at("f"), nil, 0o644)) }, "create f", "written f")
	w.want(func() { must(t, os.WriteFile(at("f"), []byte("text"), 0o644)) }, "modify f", "written f")
	w.want(func() { must(t, os.Chmod(at("f"), 0o600)) }, "attrib f")
	w.want(func() { must(t, os.Rename(at("f"), at("d/g"))) }, "from f #1", "to d/g #1")
	w.want(func() { must(t, os.Remove(at("d/g"))) }, "delete d/g")
	w.want(func() { must(t, os.Mkdir(at("new"), 0o755)) }, "create new dir")
	w.want(func() { must(t, os.Rename(at("new"), at("new2"))) }, "from new #2 dir", "to new2 #2 dir")
	w.want(func() { must(t, os.Remove(at("new2"))) }, "delete new2 dir")
	w.want(func() { must(t, os.Symlink("f", at("link"))) }, "create link")
	w.want(func() { must(t, os.Remove(at("link"))) }, "delete link")
	// An editor's save.
	w.want(func() {
		must(t, os.WriteFile(at(".old.tmp"), []byte("y"), 0o644), os.Rename(at(".old.tmp"), at("old")))
	},
		"create .old.tmp", "from .old.tmp #3", "to old #3")
	if b, err := os.ReadFile(in("old")); err != nil || string(b) != "y" {
		t.Errorf("after the save: %q, %v", b, err)
	}
	// In from elsewhere, and out.
	out := filepath.Join(t.TempDir(), "out")
	w.want(func() { must(t, os.Rename(at("old"), out)) }, "from old #4")
	w.want(func() { must(t, os.Rename(out, at("old"))) }, "to old #5")
	t.Logf("%+v", s.tree.Events())
}
