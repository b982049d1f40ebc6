package share

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestEscape swaps folders of an export with links that lead out of it, and
// moves them about, while a guest that obeys no rules looks up, reads, makes,
// changes and removes through them, with so few descriptors that nodes are
// opened again all the time. Nothing outside is read or changed.
func TestEscape(t *testing.T) {
	base := t.TempDir()
	inside, outside := base+"/export", base+"/outside"
	for _, d := range []string{inside + "/x", inside + "/a/b/c", outside + "/b/c"} {
		check(t, os.MkdirAll(d, 0o755))
	}
	for path, text := range map[string]string{
		inside + "/x/f": "inside", inside + "/a/b/c/f": "inside", outside + "/f": "secret", outside + "/b/c/f": "secret",
	} {
		check(t, os.WriteFile(path, []byte(text), 0o644))
	}
	check(t, os.Symlink("../outside", inside+"/y"))
	check(t, os.Symlink(outside+"/f", inside+"/l"))
	check(t, os.Symlink(outside, inside+"/z"))
	tree := NewTree(Options{MaxFiles: 24, Log: strict(t)})
	e, err := tree.Export(inside, false)
	check(t, err)
	s := tree.server
	initServer(t, s)
	root, code := lookup(t, s, 1, e.Name())
	if !code.Ok() {
		t.Fatal(code)
	}
	var all sync.WaitGroup
	stop := make(chan struct{})
	loop := func(step func()) {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					step()
				}
			}
		})
	}
	// By descriptor: a path would lead the host itself through the links.
	top, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(top)
	folder, err := unix.Open(inside+"/a", unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(folder)
	swap := func(dir int, a, b string) {
		if err := unix.Renameat2(dir, a, top, b, unix.RENAME_EXCHANGE); err != nil && err != unix.ENOENT && err != unix.EINVAL {
			t.Errorf("swap %s and %s: %v", a, b, err)
		}
	}
	// With pauses: the folders' locks are the guest's too.
	const pause = 50 * time.Microsecond
	loop(func() { swap(top, "x", "y"); time.Sleep(pause) })
	loop(func() { swap(top, "a", "z"); time.Sleep(pause); swap(folder, "b", "z"); time.Sleep(pause) })
	var reads, made int64
	var counts sync.Mutex
	for g := range 3 {
		rnd := rand.New(rand.NewPCG(uint64(g), 1))
		known := []uint64{root}
		loop(func() {
			n := known[rnd.IntN(len(known))]
			if rnd.IntN(2) == 0 {
				n = root
			}
			name := []string{"x", "y", "z", "a", "b", "c", "f", "l"}[rnd.IntN(8)]
			if id, code := lookup(t, s, n, name); code.Ok() {
				known = append(known, id)
				if len(known) > 60 {
					for _, id := range known[1:] {
						s.HandleRequest([][]byte{request(opForget, id, ^uint64(0))}, nil)
					}
					known = known[:1]
				}
				n = id
			}
			switch rnd.IntN(7) {
			case 0:
				name := fmt.Sprintf("new%d", rnd.IntN(20))
				if code, body := call(t, s, request(8, n, uint32(0o100644), uint32(0), uint32(0), uint32(0), name+"\x00")); code.Ok() {
					s.HandleRequest([][]byte{request(opForget, binary.LittleEndian.Uint64(body), ^uint64(0))}, nil)
					counts.Lock()
					made++
					counts.Unlock()
				}
			case 1: // chmod 0777
				call(t, s, request(4, n, uint32(1), uint32(0), string(make([]byte, 60)), uint32(0o777), string(make([]byte, 16))))
			case 2: // an attribute
				call(t, s, request(21, n, uint32(1), uint32(0), "user.x\x00v"))
			case 3:
				call(t, s, request(10, n, fmt.Sprintf("new%d\x00", rnd.IntN(20))))
			default:
				if text, ok := contentOf(t, s, n); ok {
					if strings.Contains(text, "secret") {
						t.Error("the guest reads what is outside")
					}
					counts.Lock()
					reads++
					counts.Unlock()
				}
			}
		})
	}
	enough := func() bool {
		counts.Lock()
		defer counts.Unlock()
		return reads > 100 && made > 100
	}
	begin := time.Now()
	for !enough() || time.Since(begin) < time.Second {
		if time.Since(begin) > time.Minute {
			t.Error("too little was tried in a minute to show anything")
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	all.Wait()
	t.Logf("%d reads, %d files made in %s", reads, made, time.Since(begin))
	var st unix.Stat_t
	for path, want := range map[string]uint32{outside: 0o755, outside + "/f": 0o644, outside + "/b": 0o755, outside + "/b/c": 0o755, outside + "/b/c/f": 0o644} {
		if err := unix.Lstat(path, &st); err != nil || st.Mode&0o7777 != want {
			t.Errorf("%s: mode %o, %v", path, st.Mode&0o7777, err)
		}
		if n, _ := unix.Listxattr(path, nil); n > 0 {
			t.Errorf("%s: %d bytes of attributes", path, n)
		}
	}
	for dir, want := range map[string]int{outside: 2, outside + "/b": 1, outside + "/b/c": 1} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != want {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
	if n := s.fs().files; n > 24 {
		t.Errorf("%d descriptors", n)
	}
}

// contentOf opens, reads and closes a file.
func contentOf(t *testing.T, s *server, node uint64) (string, bool) {
	code, open := call(t, s, request(14, node, uint32(os.O_RDONLY), uint32(0)))
	if !code.Ok() {
		return "", false
	}
	fh := binary.LittleEndian.Uint64(open)
	code, body := call(t, s, request(opRead, node, fh, uint64(0), uint32(100), uint32(0), uint64(0), uint64(0)))
	if c, _ := call(t, s, request(18, node, fh, uint32(0), uint32(0), uint64(0))); c != fuse.OK {
		t.Errorf("release: %v", c)
	}
	return string(body), code.Ok()
}
