package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// entry is one of a tar; header fields that are not set get defaults.
type entry struct {
	tar.Header
	Body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func link(typ byte, name, to string) entry {
	return entry{tar.Header{Name: name, Linkname: to, Typeflag: typ, Mode: 0o644}, ""}
}

func pack(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000+int64(i), 0)
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func convert(t testing.TB, r io.Reader, o Options) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = Convert(r, f, o)
	return path, err
}

// noise is bytes that differ from file to file.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// everything is a layer with all that a tar can hold. Without root, what only
// root can extract is left out.
func everything(root bool) []entry {
	unreadable := int64(0) // the test itself reads what tar has extracted
	if !root {
		unreadable = 0o400
	}
	es := []entry{
		{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o1751}, ""},
		dir("empty/"), dir("bin/"),
		{tar.Header{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755}, "suid"},
		{tar.Header{Name: "bin/wall", Typeflag: tar.TypeReg, Mode: 0o2755}, "sgid"},
		link(tar.TypeLink, "bin/su2", "bin/su"),
		link(tar.TypeSymlink, "bin/sh", "su"),
		{tar.Header{Name: "tmp", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		link(tar.TypeSymlink, "abs", "/bin/su"),
		link(tar.TypeSymlink, "long-link", strings.Repeat("x/", 2000)+"y"),
		link(tar.TypeLink, "sh-again", "bin/sh"), link(tar.TypeLink, "su3", "./bin/su"),
		file("./"+strings.Repeat("long-directory-name/", 12)+strings.Repeat("n", 255), "deep"),
		file("not\xff\xfeutf8/na\x80me", "bytes"),
		link(tar.TypeSymlink, "to-not-utf8", "not\xff\xfeutf8"),
		{tar.Header{Name: "ns", Typeflag: tar.TypeReg, Mode: 0o600, ModTime: time.Unix(1_600_000_000, 123_456_789)}, "x"},
		{tar.Header{Name: "old", Typeflag: tar.TypeReg, Mode: unreadable, ModTime: time.Unix(-86400, 0)}, "before 1970"},
		{tar.Header{Name: "xattr", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{
			"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.binary": "\x00\x01\xff", "SCHILY.xattr.user.big": noise(9, 2000)}}, noise(8, 3000)},
		{tar.Header{Name: "xattr-dir/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.d": "dir"}}, ""},
		{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o622}, ""},
		file("twice", "first"), file("twice", "second, longer"),
		file("/rooted", "slash"), file("a/./b//c", "cleaned"),
	}
	for _, n := range []int{0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 1 << 20, 3<<20 + 17} {
		es = append(es, file(fmt.Sprintf("sizes/%d", n), noise(uint64(n), n)))
	}
	es = append(es, file("zeros", strings.Repeat("\x00", 1<<20+5)))
	es = append(es, dir("many/")) // just before its files, or tar dates it today
	for i := range 3000 {
		es = append(es, file(fmt.Sprintf("many/%d-%s", i, strings.Repeat("f", i%50)), noise(uint64(i), i%700)))
	}
	for i := range 200 { // one inode, many names
		es = append(es, link(tar.TypeLink, fmt.Sprintf("names/%d", i), "many/0-"))
	}
	if root {
		es = append(es,
			entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
			entry{tar.Header{Name: "blk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 0x54321}, ""},
			entry{tar.Header{Name: "owned", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 1000, Gid: 70000}, "o"},
			entry{tar.Header{Name: "owned-dir", Typeflag: tar.TypeDir, Mode: 0o2775, Uid: 4_000_000_000, Gid: 100}, ""},
			entry{tar.Header{Name: "owned-link", Linkname: "x", Typeflag: tar.TypeSymlink, Mode: 0o777, Uid: 5, Gid: 6}, ""},
			entry{tar.Header{Name: "caps", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"SCHILY.xattr.trusted.t":           "only root sees it",
				"SCHILY.xattr.system.posix_acl_access": "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00" +
					"\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"}}, "c"},
		)
	}
	return es
}

// TestAsTar compares an image with what GNU tar extracts, file by file.
func TestAsTar(t *testing.T) {
	root := os.Geteuid() == 0
	stream := pack(t, everything(root))
	// Missing parents have no date of their own in a tar.
	undated := map[string]bool{"not\xff\xfeutf8": true, "sizes": true, "names": true, "a": true, "a/b": true}
	for i, p := 0, "."; i < 12; i++ {
		p = filepath.Join(p, "long-directory-name")
		undated[p] = true
	}
	want := extract(t, stream, undated)

	image, err := convert(t, bytes.NewReader(stream), Options{})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, image)
	if got, ok := mounted(t, image); ok {
		same(t, "kernel", got, want)
	}
	got := listImage(t, image)
	for p, n := range want {
		if !root { // the image keeps the owner of the tar, an ordinary tar does not
			n.UID, n.GID = 0, 0
		}
		if strings.Contains(p, "utf8/") {
			delete(want, p) // go-erofs can't open it
			continue
		}
		want[p] = n
	}
	same(t, "go-erofs", got, want)
}

// extract lists what GNU tar makes of a stream.
func extract(t *testing.T, stream []byte, undated map[string]bool) listing {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("tar", "--extract", "--xattrs", "--xattrs-include=*", "--preserve-permissions", "--numeric-owner", "--directory", dir)
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	l := listDir(t, dir)
	for p, n := range l {
		if undated[p] {
			n.Mtime = time.Unix(0, 0)
		}
		l[p] = n
	}
	return l
}

func TestDeterministic(t *testing.T) {
	stream := pack(t, everything(true))
	var sums [2]string
	for i := range sums {
		image, err := convert(t, iotestChunks(bytes.NewReader(stream), 1000+i*777), Options{UUID: func() [16]byte { return [16]byte{1} }})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = digest(t, f)
		f.Close()
	}
	if sums[0] != sums[1] {
		t.Fatal("the same layer gave two images")
	}
}

// iotestChunks returns at most n bytes a read.
func iotestChunks(r io.Reader, n int) io.Reader { return chunks{r, n} }

type chunks struct {
	r io.Reader
	n int
}

func (c chunks) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.n)]) }

var errAny = errors.New("any")

// TestEntries has what GNU tar alone can't tell: whiteouts, replaced entries,
// links in parents, refusals.
func TestEntries(t *testing.T) {
	tests := []struct {
		name    string
		entries []entry
		want    string // "path[ what]" of all but the root
		err     string
	}{
		{name: "whiteout", entries: []entry{file("d/.wh.gone", "")}, want: "d dir; d/gone whiteout"},
		{name: "opaque", entries: []entry{dir("d/"), file("d/.wh..wh..opq", ""), file("d/new", "1")}, want: "d dir opaque; d/new 1"},
		{name: "opaque before its directory", entries: []entry{file("d/.wh..wh..opq", ""), dir("d/")}, want: "d dir opaque"},
		{name: "opaque root", entries: []entry{file(".wh..wh..opq", ""), dir("./")}, want: ". opaque"},
		{name: "whiteout then file", entries: []entry{file(".wh.f", ""), file("f", "1")}, want: "f 1"},
		{name: "file then whiteout", entries: []entry{file("f", "1"), file(".wh.f", "")}, want: "f 1"},
		{name: "whiteout then directory", entries: []entry{file(".wh.d", ""), file("d/f", "1")}, want: "d dir opaque; d/f 1"},
		{name: "directory then whiteout", entries: []entry{file("d/f", "1"), file(".wh.d", "")}, want: "d dir opaque; d/f 1"},
		{name: "aufs notes", entries: []entry{dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")}, want: ""},
		{name: "whiteout of the parent", entries: []entry{file("d/.wh...", "")}, err: "whiteout of no name"},
		{name: "whiteout of itself", entries: []entry{file("d/.wh..", "")}, err: "whiteout of no name"},
		{name: "whiteout of nothing", entries: []entry{file("d/.wh.", "")}, err: "whiteout of no name"},
		{name: "whiteout reaches out", entries: []entry{file("../.wh.etc", "")}, err: "points out"},

		{name: "file replaces directory", entries: []entry{file("a/b/c", "1"), file("a", "2")}, want: "a 2"},
		{name: "directory replaces file", entries: []entry{file("a", "2"), file("x", ""), dir("a/"), file("a/b", "3")}, want: "a dir; a/b 3; x "},
		{name: "directory replaces link", entries: []entry{dir("t/"), link(tar.TypeSymlink, "a", "t"), dir("a/"), file("a/b", "3")}, want: "a dir; a/b 3; t dir"},
		{name: "directory keeps its files", entries: []entry{file("a/b", "1"), dir("a/")}, want: "a dir; a/b 1"},
		{name: "link keeps the replaced file", entries: []entry{file("a", "1"), link(tar.TypeLink, "b", "a"), file("a", "2")}, want: "a 2; b 1"},
		{name: "link to itself", entries: []entry{file("a", "1"), link(tar.TypeLink, "a", "./a")}, want: "a 1"},
		{name: "link replaces its parent", entries: []entry{file("a/x", "1"), link(tar.TypeLink, "a", "a/x")}, want: "a 1"},

		{name: "parent is a link", entries: []entry{dir("usr/lib/"), link(tar.TypeSymlink, "lib", "usr/lib"), file("lib/f", "1")}, want: "lib ->usr/lib; usr dir; usr/lib dir; usr/lib/f 1"},
		{name: "parent is an absolute link", entries: []entry{link(tar.TypeSymlink, "lib", "/usr/lib"), file("lib/f", "1")}, want: "lib ->/usr/lib; usr dir; usr/lib dir; usr/lib/f 1"},
		{name: "parent link reaches out", entries: []entry{link(tar.TypeSymlink, "d/up", "../../../etc"), file("d/up/passwd", "1")}, want: "d dir; d/up ->../../../etc; etc dir; etc/passwd 1"},
		{name: "parent links turn in circles", entries: []entry{link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/f", "")}, err: "too many levels"},
		{name: "whiteouts below a file", entries: []entry{file("a", "1"), file("a/.wh.b", ""), file("a/.wh..wh..opq", "")}, want: "a 1"},
		{name: "file after whiteouts below it", entries: []entry{file("a/.wh.b", ""), file("a", "1")}, want: "a 1"},
		{name: "parent is a file", entries: []entry{file("a", ""), file("a/b", "")}, err: "not a directory"},

		{name: "up and down", entries: []entry{file("a/../b", "1")}, want: "b 1"},
		{name: "rooted", entries: []entry{file("/../b", "1")}, want: "b 1"},
		{name: "out", entries: []entry{file("../b", "1")}, err: "points out"},
		{name: "out deep", entries: []entry{file("a/../../b", "1")}, err: "points out"},
		{name: "hard link out", entries: []entry{link(tar.TypeLink, "p", "../../etc/passwd")}, err: "points out"},
		{name: "hard link to nothing", entries: []entry{link(tar.TypeLink, "p", "q")}, err: "not a file of the layer"},
		{name: "hard link to a directory", entries: []entry{dir("d"), link(tar.TypeLink, "p", "d")}, err: "not a file of the layer"},
		{name: "hard link to a whiteout", entries: []entry{file(".wh.q", ""), link(tar.TypeLink, "p", "q")}, err: "not a file of the layer"},
		{name: "root is a file", entries: []entry{link(tar.TypeSymlink, ".", "x")}, err: "root is not a directory"},
		{name: "name too long", entries: []entry{file(strings.Repeat("n", 256), "")}, err: "name of 256 bytes"},
		{name: "path too long", entries: []entry{file(strings.Repeat("n/", 2999)+"nn", "")}, err: "name of 6000 bytes"},
		{name: "overlay's own attributes", entries: []entry{{tar.Header{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/"}}, ""}}, want: "d dir"},
		{name: "device out of range", entries: []entry{{tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1 << 13}, ""}}, err: "device number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image, err := convert(t, bytes.NewReader(pack(t, tt.entries)), Options{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			fsck(t, image)
			if got := summary(t, image); got != tt.want {
				t.Fatalf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// summary of an image with small files.
func summary(t *testing.T, image string) string {
	t.Helper()
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range listRaw(t, bytes.NewReader(raw)) {
		out = append(out, n)
	}
	return strings.Join(out, "; ")
}

func TestBounds(t *testing.T) {
	big := pack(t, []entry{file("a", strings.Repeat("x", 100_000))})
	for name, o := range map[string]Options{"size": {MaxSize: 90_000}, "stream": {MaxSize: 100_500}} {
		if _, err := convert(t, bytes.NewReader(big), o); !errors.Is(err, ErrTooBig) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := convert(t, bytes.NewReader(pack(t, []entry{file("a/b/c/d", "")})), Options{MaxEntries: 3}); !errors.Is(err, ErrTooBig) {
		t.Errorf("entries: got %v", err)
	}
	if _, err := convert(t, bytes.NewReader(big[:60_000]), Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated: got %v", err)
	}
	if _, err := convert(t, strings.NewReader(strings.Repeat("no tar ", 1000)), Options{}); !errors.Is(err, tar.ErrHeader) {
		t.Errorf("no tar: got %v", err)
	}
}
