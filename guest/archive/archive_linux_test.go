package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree makes files in a new directory: "name": content, "name/": a directory,
// "name@": a link to the content.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range files {
			if !yield(n) {
				return
			}
		}
	}) {
		p := filepath.Join(dir, strings.TrimSuffix(name, "@"))
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasSuffix(name, "@"):
			err = os.Symlink(files[name], p)
		default:
			err = os.WriteFile(p, []byte(files[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, dir string) *Root {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// list is a tar's entries: names, with what they are.
func list(t *testing.T, b []byte) (names []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		switch h.Typeflag {
		case tar.TypeSymlink:
			name += " -> " + h.Linkname
		case tar.TypeLink:
			name += " = " + h.Linkname
		}
		names = append(names, name)
	}
}

// What Docker 20.10 and 28 send for the same paths.
func TestPack(t *testing.T) {
	dir := tree(t, map[string]string{"d/a": "one", "d/la@": "a", "ld@": "/d", "bad@": "/nope", "d/sub/x": "x", "out@": "../../../../d"})
	if err := os.Link(filepath.Join(dir, "d/a"), filepath.Join(dir, "d/z")); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	for _, c := range []struct {
		path string
		want []string
	}{
		{"/d", []string{"d/", "d/a", "d/la -> a", "d/sub/", "d/sub/x", "d/z = d/a"}},
		{"d/sub/", []string{"sub/", "sub/x"}},
		{"/d/sub/.", []string{"./", "./x"}},
		{"/d/a", []string{"a"}},
		{"/d/../../../d/a", []string{"a"}},
		{"/ld", []string{"ld -> /d"}},
		{"/ld/sub", []string{"sub/", "sub/x"}},
		{"/out/sub/", []string{"sub/", "sub/x"}},
		{"/ld/", []string{"ld/", "ld/a", "ld/la -> a", "ld/sub/", "ld/sub/x", "ld/z = ld/a"}},
		{"/bad", []string{"bad -> /nope"}},
	} {
		var b bytes.Buffer
		if err := r.Pack(&b, c.path); err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if got := list(t, b.Bytes()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	for path, want := range map[string]error{"/nope": fs.ErrNotExist, "/bad/": fs.ErrNotExist, "/d/a/": unix.ENOTDIR} {
		if err := r.Pack(io.Discard, path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	st, err := r.Stat("/ld")
	if err != nil || st.Name != "ld" || st.Target != "/d" || st.Mode&fs.ModeSymlink == 0 {
		t.Errorf("stat of a link: %+v, %v", st, err)
	}
	if st, err = r.Stat("/bad"); err != nil || st.Target != "/nope" {
		t.Errorf("stat of a link to nothing: %+v, %v", st, err)
	}
	if st, err = r.Stat("/ld/"); err != nil || !st.Mode.IsDir() {
		t.Errorf("stat of what a link leads to: %+v, %v", st, err)
	}
	var b bytes.Buffer
	if err := r.Export(&b); err != nil {
		t.Fatal(err)
	}
	if got := list(t, b.Bytes()); got[0] != "bad -> /nope" || got[1] != "d/" {
		t.Errorf("export: %q", got)
	}
}

type entry struct {
	name, link, content string
	kind                byte
}

func makeTar(t *testing.T, entries ...entry) io.Reader {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: 0o750, Size: int64(len(e.content)),
			Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 0),
		}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestUnpack(t *testing.T) {
	dir := tree(t, map[string]string{"d/old": "old", "d/dir/x": "x", "ld@": "/d", "esc@": "../../../../../../etc", "etc/": "", "file": ""})
	r := open(t, dir)
	err := r.Unpack(makeTar(t,
		entry{name: "new", content: "new"},
		entry{name: "deep/er/f", content: "deep"},
		entry{name: "deep/", kind: tar.TypeDir},
		entry{name: "same", link: "new", kind: tar.TypeLink},
		entry{name: "sl", link: "../../etc", kind: tar.TypeSymlink},
		entry{name: "sl/f", content: "through a link"},
		entry{name: "old", content: "replaced"},
	), "/ld", Options{KeepKind: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"d/new": "new", "d/deep/er/f": "deep", "d/same": "new", "d/old": "replaced", "etc/f": "through a link"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "d/deep"))
	if err != nil || fi.Mode().Perm() != 0o750 || fi.ModTime().Unix() != 1e9 {
		t.Errorf("directory: %v %v, %v", fi.Mode(), fi.ModTime(), err)
	}
	for name, c := range map[string]struct {
		at   string
		e    entry
		want error
	}{
		"dir by file": {"/d", entry{name: "dir"}, ErrKind},
		"file by dir": {"/d", entry{name: "old/", kind: tar.TypeDir}, ErrKind},
		"onto a file": {"/file", entry{name: "x"}, ErrNotDirectory},
		"nowhere":     {"/nope", entry{name: "x"}, fs.ErrNotExist},
		"upwards":     {"/d", entry{name: "../../x"}, nil},
		"link up":     {"/d", entry{name: "x", link: "../../x", kind: tar.TypeLink}, nil},
	} {
		err := r.Unpack(makeTar(t, c.e), c.at, Options{KeepKind: true})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// An absolute name, and a link that leads far up, stay in the root.
	if err := r.Unpack(makeTar(t, entry{name: "/abs", content: "abs"}), "/esc", Options{}); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "etc/abs")); err != nil || string(got) != "abs" {
		t.Errorf("through a link that leads up: %q, %v", got, err)
	}
	if err := r.Unpack(makeTar(t, entry{name: "dir", content: "now a file"}), "/d", Options{}); err != nil {
		t.Error(err)
	}
	if err := r.Unpack(strings.NewReader("no tar at all, but long enough for a block?"), "/d", Options{}); err == nil {
		t.Error("nonsense was unpacked")
	}
}

// Somebody in the root exchanges directories and links to the outside all the
// time. Nothing outside is read or written.
func TestRace(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("SECRET"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := tree(t, map[string]string{"d/sub/secret": "fine", "d/file": "fine"})
	evil := filepath.Join(dir, "evil")
	if err := os.Symlink(strings.Repeat("../", 40)+outside[1:], evil); err != nil {
		t.Fatal(err)
	}
	fileEvil := filepath.Join(dir, "fileevil")
	if err := os.Symlink(secret, fileEvil); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, pair := range [][2]string{{filepath.Join(dir, "d/sub"), evil}, {filepath.Join(dir, "d/file"), fileEvil}} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := unix.Renameat2(unix.AT_FDCWD, pair[0], unix.AT_FDCWD, pair[1], unix.RENAME_EXCHANGE); err != nil && !errors.Is(err, unix.ENOENT) {
					t.Error(err)
					return
				}
			}
		})
	}
	r := open(t, dir)
	swapped := 0
	for i := range 500 {
		var b bytes.Buffer
		if err := r.Pack(&b, "/d"); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b.Bytes(), []byte("SECRET")) {
			t.Fatal("the outside was read")
		}
		if strings.Contains(fmt.Sprint(list(t, b.Bytes())), "->") {
			swapped++
		}
		// Errors are the race's; only where it leads matters.
		r.Unpack(makeTar(t, entry{name: fmt.Sprint("sub/mine", i), content: "mine"}), "/d", Options{})
		r.Unpack(makeTar(t, entry{name: "mine", content: "mine"}), "/d/sub", Options{})
		r.Stat("/d/sub/secret")
	}
	close(stop)
	wg.Wait()
	if swapped == 0 || swapped == 500 {
		t.Errorf("the race was lost or won %d times of 500: it shows nothing", swapped)
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("the outside was written to: %v, %v", left, err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "SECRET" {
		t.Errorf("the outside was changed: %q, %v", b, err)
	}
}

// layerOf makes an overlay's two directories without a mount.
func layerOf(t *testing.T) *Layer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make whiteouts: run the tests as root")
	}
	lower := tree(t, map[string]string{"etc/passwd": "root", "etc/gone": "x", "bin/sh": "sh", "keep/a": "a", "keep/b": "b", "opq/old": "old", "opq/both": "1"})
	upper := tree(t, map[string]string{"etc/passwd": "root and more", "etc/hosts": "", "etc/hostname": "box", "new/f": "12345", "opq/new": "n", "opq/both": "22", "proc/": "", "keep/": ""})
	for _, p := range []string{"etc/gone", "bin"} {
		if err := unix.Mknod(filepath.Join(upper, p), unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(upper, "opq"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skip("the temporary folder takes no trusted attributes: ", err)
	}
	init := tree(t, map[string]string{"etc/hosts": "", "etc/hostname": "", "proc/": "", "dev/": ""})
	return &Layer{Upper: open(t, upper), Lower: open(t, lower), Init: open(t, init)}
}

func TestChanges(t *testing.T) {
	l := layerOf(t)
	list, err := l.Changes()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range list {
		got = append(got, "CAD"[c.Kind:c.Kind+1]+" "+c.Path)
	}
	want := []string{"D /bin", "C /etc", "D /etc/gone", "C /etc/hostname", "C /etc/passwd", "A /new", "A /new/f", "C /opq", "C /opq/both", "A /opq/new", "D /opq/old"}
	if !slices.Equal(got, want) {
		t.Errorf("changes: %q\nwant     %q", got, want)
	}
	if size, err := l.Size(); err != nil || size != int64(len("root and more")+len("box")+5+1+2) {
		t.Errorf("size %d, %v", size, err)
	}
}

func TestLayerPack(t *testing.T) {
	l := layerOf(t)
	var b bytes.Buffer
	if err := l.Pack(&b); err != nil {
		t.Fatal(err)
	}
	got := list(t, b.Bytes())
	want := []string{".wh.bin", "etc/", "etc/.wh.gone", "etc/hostname", "etc/passwd", "new/", "new/f", "opq/", "opq/.wh..wh..opq", "opq/both", "opq/new"}
	if !slices.Equal(got, want) {
		t.Errorf("layer: %q\nwant   %q", got, want)
	}
}
