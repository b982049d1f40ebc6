package share

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// inodesEnv is how many inodes TestManyInodes has the guest remember.
const inodesEnv = "SAMPAN_SHARE_INODES"

// sizeOf asks for the attributes of a node.
func sizeOf(t *testing.T, s *server, node uint64) (int64, fuse.Status) {
	t.Helper()
	code, body := call(t, s, request(3, node, uint32(0), uint32(0), uint64(0)))
	if !code.Ok() {
		return 0, code
	}
	return int64(binary.LittleEndian.Uint64(body[24:])), code // behind fuse_attr_out's timeout: ino, size
}

// TestManyInodes lets the guest remember many more inodes than there are
// descriptors. Each stays what it was, under a new name of the guest's too;
// none becomes what the host has put in its place.
func TestManyInodes(t *testing.T) {
	inodes, limit := 4000, 300
	if v := os.Getenv(inodesEnv); v != "" {
		var err error
		inodes, err = strconv.Atoi(v)
		check(t, err)
		limit = inodes / 4 // maxIdle is what counts then
	}
	host := t.TempDir()
	tree := NewTree(Options{MaxFiles: limit})
	e, err := tree.Export(host, false)
	check(t, err)
	s := tree.server
	initServer(t, s)
	root, _ := lookup(t, s, 1, e.Name())
	const perDir = 500
	dirs, files := map[int]uint64{}, make([]uint64, inodes)
	path := func(i int) string { return fmt.Sprintf("%s/d%d/f%d", host, i/perDir, i) }
	for i := range files {
		d := i / perDir
		if dirs[d] == 0 {
			check(t, os.Mkdir(fmt.Sprintf("%s/d%d", host, d), 0o755))
			n, code := lookup(t, s, root, fmt.Sprint("d", d))
			if !code.Ok() {
				t.Fatal(code)
			}
			dirs[d] = n
		}
		check(t, unix.Mknod(path(i), unix.S_IFREG|0o644, 0))
		check(t, os.Truncate(path(i), int64(i)))
		n, code := lookup(t, s, dirs[d], fmt.Sprint("f", i))
		if !code.Ok() {
			t.Fatalf("lookup %d: %v", i, code)
		}
		files[i] = n
	}
	held := func() {
		t.Helper()
		open, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		most := min(limit, maxIdle+10)
		if n := s.fs().files; n > most || len(open) > most+100 {
			t.Fatalf("%d descriptors in the account, %d open; the limit is %d", n, len(open), most)
		}
	}
	held()
	if n := len(s.fs().nodes); n < inodes {
		t.Fatalf("%d nodes", n)
	}
	// The guest renames a directory; the host renames, removes and replaces.
	if code, _ := call(t, s, request(12, root, root, "d1\x00moved\x00")); !code.Ok() {
		t.Fatal(code)
	}
	const gone, replaced, renamed = 7, 8, 9
	check(t, os.Remove(path(gone)))
	check(t, os.Remove(path(replaced)))
	for i := range 50 { // one of them gets the number of the old
		check(t, os.WriteFile(fmt.Sprintf("%s/d0/again%d", host, i), []byte("other"), 0o644))
	}
	check(t, os.WriteFile(path(replaced), []byte("other"), 0o644))
	check(t, os.Rename(path(renamed), host+"/d0/elsewhere"))
	rnd := rand.New(rand.NewPCG(1, 2))
	for range min(inodes, 20_000) {
		i := rnd.IntN(inodes)
		size, code := sizeOf(t, s, files[i])
		switch {
		case i == gone || i == replaced || i == renamed:
			if code != fuse.Status(unix.ESTALE) {
				t.Fatalf("file %d: %v, size %d", i, code, size)
			}
		case !code.Ok() || size != int64(i):
			t.Fatalf("file %d: %v, size %d", i, code, size)
		}
	}
	held()
	for name, want := range map[string]int64{"elsewhere": renamed, fmt.Sprint("f", replaced): 5} {
		n, code := lookup(t, s, dirs[0], name)
		if !code.Ok() {
			t.Fatalf("lookup %s: %v", name, code)
		}
		if size, code := sizeOf(t, s, n); !code.Ok() || size != want || n == files[replaced] {
			t.Errorf("%s: node %d, %v, size %d, want %d", name, n, code, size, want)
		}
	}
	// A file that the guest has removed stays reachable for whoever knows it.
	if code, _ := call(t, s, request(10, dirs[0], "f5\x00")); !code.Ok() {
		t.Fatal(code)
	}
	for i := 100; i < 100+limit+maxIdle && i < inodes; i++ {
		sizeOf(t, s, files[i])
	}
	if size, code := sizeOf(t, s, files[5]); !code.Ok() || size != 5 {
		t.Errorf("removed file: %v, size %d", code, size)
	}
	for _, n := range files {
		s.HandleRequest([][]byte{request(opForget, n, uint64(1))}, nil)
	}
	for _, n := range dirs {
		s.HandleRequest([][]byte{request(opForget, n, uint64(1))}, nil)
	}
	if n := len(s.fs().nodes); n > 4 { // the root, what was looked up again, its folder
		t.Errorf("%d nodes are left", n)
	}
	e.Close()
	if f := s.fs(); f.files != 0 || len(f.nodes) != 0 || f.idle.first() != nil {
		t.Errorf("left: %d descriptors, %d nodes", f.files, len(f.nodes))
	}
}
