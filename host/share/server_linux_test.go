package share

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// request is a FUSE request: a header, and words and text behind it.
func request(op uint32, node uint64, body ...any) []byte {
	b := make([]byte, inHeaderSize)
	for _, part := range body {
		switch v := part.(type) {
		case string:
			b = append(b, v...)
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	binary.LittleEndian.PutUint32(b[4:], op)
	binary.LittleEndian.PutUint64(b[8:], 77) // unique
	binary.LittleEndian.PutUint64(b[16:], node)
	return b
}

// call sends a request in pieces as a guest's rings would, and returns the
// answer's error and body.
func call(t *testing.T, s *server, in []byte) (fuse.Status, []byte) {
	t.Helper()
	split := min(inHeaderSize, len(in))
	out := make([]byte, 1<<16)
	n, _ := s.HandleRequest([][]byte{in[:split], in[split:]}, [][]byte{out[:outHeaderSize], out[outHeaderSize:5000], out[5000:]})
	if n < outHeaderSize {
		t.Fatalf("answer of %d bytes", n)
	}
	h := (*fuse.OutHeader)(unsafe.Pointer(&out[0]))
	if int(h.Length) != n || h.Unique != 77 {
		t.Fatalf("answer %+v of %d bytes", h, n)
	}
	return fuse.Status(-h.Status), out[outHeaderSize:n]
}

func initServer(t *testing.T, s *server) {
	t.Helper()
	if code, _ := call(t, s, request(opInit, 0, uint32(7), uint32(40), uint32(1<<17), ^uint32(0), ^uint32(0), string(make([]byte, 44)))); !code.Ok() {
		t.Fatalf("INIT: %v", code)
	}
}

// lookup returns the node of a name.
func lookup(t *testing.T, s *server, dir uint64, name string) (uint64, fuse.Status) {
	t.Helper()
	code, body := call(t, s, request(1, dir, name+"\x00"))
	if !code.Ok() {
		return 0, code
	}
	return binary.LittleEndian.Uint64(body), fuse.OK
}

// For how long the guest may use a name without asking.
func TestNameTimeouts(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(dir+"/folder", 0o755))
	for name, size := range map[string]int64{"empty": 0, "small": largeFile - 1, "large": largeFile} {
		check(t, os.WriteFile(dir+"/"+name, nil, 0o644))
		check(t, os.Truncate(dir+"/"+name, size))
	}
	tree := NewTree(Options{})
	e, err := tree.Export(dir, false)
	check(t, err)
	defer e.Close()
	initServer(t, tree.server)
	root, code := lookup(t, tree.server, 1, e.Name())
	if !code.Ok() {
		t.Fatal(code)
	}
	for name, want := range map[string]time.Duration{"empty": 0, "small": 0, "large": time.Millisecond, "folder": time.Second} {
		code, body := call(t, tree.server, request(1, root, name+"\x00"))
		if !code.Ok() {
			t.Fatalf("%s: %v", name, code)
		}
		out := (*fuse.EntryOut)(unsafe.Pointer(&body[0]))
		if got := time.Duration(out.EntryValid)*time.Second + time.Duration(out.EntryValidNsec); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestExports(t *testing.T) {
	home := t.TempDir()
	secret := home + "/.sampan"
	check(t, os.MkdirAll(secret+"/store", 0o755))
	check(t, os.Mkdir(home+"/d", 0o755))
	check(t, os.WriteFile(home+"/d/f", []byte("content"), 0o644))
	check(t, os.Symlink("d", home+"/link"))
	check(t, os.Symlink(secret, home+"/d/sneak"))
	tree := NewTree(Options{Forbidden: []string{secret}})
	s := tree.server
	initServer(t, s)
	for path, want := range map[string]error{
		home + "/none": fs.ErrNotExist, secret: ErrForbidden, secret + "/store": ErrForbidden, home + "/d/sneak": ErrForbidden,
		home + "/d/sneak/store": ErrForbidden,
	} {
		if _, err := tree.Export(path, false); !errors.Is(err, want) {
			t.Errorf("export %s: %v, want %v", path, err, want)
		}
	}
	if _, err := tree.Export("d", false); err == nil {
		t.Error("a relative path is exported")
	}
	a, err := tree.Export(home+"/d", false)
	check(t, err)
	b, err := tree.Export(home+"/link", false)
	check(t, err)
	ro, err := tree.Export(home+"/d", true)
	check(t, err)
	file, err := tree.Export(home+"/d/f", false)
	check(t, err)
	if a.Name() != b.Name() || a.Name() == ro.Name() || filepath.Base(a.Name()) != a.Name() {
		t.Errorf("names %q %q %q", a.Name(), b.Name(), ro.Name())
	}
	if n, code := lookup(t, s, 1, file.Name()); !code.Ok() || n == 0 {
		t.Errorf("file: %v", code)
	}
	dir, code := lookup(t, s, 1, a.Name())
	node, code2 := lookup(t, s, dir, "f")
	if !code.Ok() || !code2.Ok() {
		t.Fatalf("lookup: %v, %v", code, code2)
	}
	_, open := call(t, s, request(14, node, uint32(os.O_RDWR), uint32(0)))
	fh := binary.LittleEndian.Uint64(open)
	read := request(opRead, node, fh, uint64(0), uint32(100), uint32(0), uint64(0), uint64(0))
	if code, body := call(t, s, read); !code.Ok() || string(body) != "content" {
		t.Errorf("read: %v %q", code, body)
	}
	a.Close()
	a.Close()
	if code, _ := call(t, s, read); !code.Ok() {
		t.Errorf("one export is still open, but: %v", code)
	}
	b.Close()
	if code, _ := call(t, s, read); code != fuse.EBADF {
		t.Errorf("read of a withdrawn file: %v", code)
	}
	if _, code := lookup(t, s, dir, "f"); code != fuse.Status(unix.ESTALE) {
		t.Errorf("lookup in a withdrawn directory: %v", code)
	}
	if _, code := lookup(t, s, 1, b.Name()); code != fuse.ENOENT {
		t.Errorf("lookup of a withdrawn export: %v", code)
	}
	if _, code := lookup(t, s, 1, ro.Name()); !code.Ok() {
		t.Errorf("the other export: %v", code)
	}
	ro.Close()
	file.Close()
	if s.fs().files != 0 || len(s.fs().nodes) != 0 || len(s.fs().handles) != 0 {
		t.Errorf("left: %d descriptors, %d nodes, %d handles", s.fs().files, len(s.fs().nodes), len(s.fs().handles))
	}
}

// TestHostileRequests sends what no kernel would.
func TestHostileRequests(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/f", []byte("x"), 0o644))
	check(t, unix.Mkfifo(dir+"/fifo", 0o644))
	tree := NewTree(Options{Log: strict(t)})
	e, err := tree.Export(dir, false)
	check(t, err)
	s := tree.server
	initServer(t, s)
	root, _ := lookup(t, s, 1, e.Name())
	fifo, _ := lookup(t, s, root, "fifo")
	for what, in := range map[string][]byte{
		"up":           request(1, root, "..\x00"),
		"path":         request(1, root, "../etc\x00"),
		"no name":      request(1, root),
		"long name":    request(1, root, string(make([]byte, 300))),
		"unlink up":    request(10, root, "..\x00"),
		"symlink":      request(6, root, "one name"),
		"open fifo":    request(14, fifo, uint32(0), uint32(0)),
		"huge read":    request(opRead, root, uint64(0), uint64(0), ^uint32(0), uint32(0), uint64(0), uint64(0)),
		"huge list":    request(opReadDir, root, uint64(0), uint64(0), ^uint32(0), uint32(0), uint64(0), uint64(0)),
		"huge getattr": request(opGetXAttr, root, ^uint32(0), uint32(0), "user.x\x00"),
		"short write":  request(opWrite, root, uint64(0), uint64(0), uint32(1000), uint32(0), uint64(0), uint32(0), uint32(0), "x"),
		"poll name":    request(1, 1, ".go-fuse-epoll-hack\x00"),
		"poll node":    request(14, ^uint64(0), uint32(0), uint32(0)),
		"opcode":       request(1<<31, root),
		"ioctl":        request(39, root, string(make([]byte, 32))),
		"huge request": request(1, root, string(make([]byte, maxRequest))),
	} {
		if code, body := call(t, s, in); code.Ok() || len(body) > 0 {
			t.Errorf("%s: %v with %d bytes", what, code, len(body))
		}
	}
	for _, n := range []uint64{0, 1, root, 1 << 60} {
		s.HandleRequest([][]byte{request(opForget, n, ^uint64(0))}, nil)
		s.HandleRequest([][]byte{request(18, n, uint64(9), uint64(0), uint64(0))}, nil)
	}
}

// TestHangs has a request hang in the host's file system: the guest's next boot
// must not wait for it, nor may the old request touch what the new boot holds.
func TestHangs(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/f")
	check(t, err)
	defer f.Close()
	tree := NewTree(Options{})
	e, err := tree.Export(dir, false)
	check(t, err)
	defer e.Close()
	s := tree.server
	initServer(t, s)
	root, _ := lookup(t, s, 1, e.Name())
	node, _ := lookup(t, s, root, "f")
	// Whoever opens a leased file waits until the lease is given back.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("lease: %v", err)
	}
	opened := make(chan fuse.Status)
	go func() {
		code, _ := call(t, s, request(14, node, uint32(os.O_RDWR), uint32(0)))
		opened <- code
	}()
	old := s.fs()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		old.mu.Lock()
		busy := old.nodes[node].refs > 0
		old.mu.Unlock()
		if busy {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the open does not begin")
		}
	}
	begin := time.Now()
	initServer(t, s)
	if _, code := lookup(t, s, root, "f"); code != fuse.Status(unix.ESTALE) {
		t.Errorf("the new boot knows a node of the old: %v", code)
	}
	root, code := lookup(t, s, 1, e.Name())
	if _, code2 := lookup(t, s, root, "f"); !code.Ok() || !code2.Ok() {
		t.Errorf("the new boot's lookups: %v, %v", code, code2)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the new boot waited %s", d)
	}
	select {
	case code := <-opened:
		t.Errorf("the open did not hang: %v", code)
	default:
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if code := <-opened; !code.Ok() && code != fuse.Status(unix.ESTALE) {
		t.Errorf("the old open ends with %v", code)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		old.mu.Lock()
		left := old.files
		old.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the old boot keeps %d descriptors", left)
		}
	}
}
