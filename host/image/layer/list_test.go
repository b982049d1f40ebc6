package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// node is what one file of a tree looks like.
type node struct {
	Mode     uint32 // as in stat(2)
	UID, GID int
	Rdev     uint64
	Nlink    int
	Size     int64 // of files and links
	Mtime    time.Time
	Content  string // digest of a file, target of a link
	Xattrs   string
	ID       int64 // inode number
}

// listing is a tree by path; ID is replaced by the inode's first path.
type listing map[string]node

// lines renders a listing for comparison, with every name of a shared inode.
func (l listing) lines() []string {
	names := map[int64][]string{}
	paths := make([]string, 0, len(l))
	for p := range l {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		names[l[p].ID] = append(names[l[p].ID], p)
	}
	var out []string
	for _, p := range paths {
		n := l[p]
		out = append(out, fmt.Sprintf("%q mode=%o owner=%d:%d rdev=%x nlink=%d size=%d mtime=%d.%09d content=%q xattrs=%s same=%q",
			p, n.Mode, n.UID, n.GID, n.Rdev, n.Nlink, n.Size, n.Mtime.Unix(), n.Mtime.Nanosecond(), n.Content, n.Xattrs, names[n.ID][0]))
	}
	return out
}

// listDir lists a directory of this machine.
func listDir(t *testing.T, root string) listing {
	t.Helper()
	l := listing{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		n := node{Mode: uint32(st.Mode), UID: int(st.Uid), GID: int(st.Gid), Rdev: uint64(st.Rdev), Nlink: int(st.Nlink),
			Mtime: time.Unix(st.Mtim.Unix()), ID: int64(st.Ino), Xattrs: xattrsOf(t, p)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			n.Size, n.Content = st.Size, digest(t, f)
		case unix.S_IFLNK:
			n.Size = st.Size
			n.Content, err = os.Readlink(p)
		case unix.S_IFDIR:
			n.Nlink = 0 // depends on the file system
		}
		l[rel] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func xattrsOf(t *testing.T, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(p, err)
	}
	m := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(p, name, err)
		}
		m[name] = string(v[:n])
	}
	return fmt.Sprintf("%q", m)
}

func digest(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// listImage lists an image by a reader that we did not write. It can't open
// names that are not UTF-8: their Content is left out.
func listImage(t *testing.T, image string) listing {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	l := listing{}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*goerofs.Stat)
		// go-erofs doesn't report setuid, setgid and sticky bits: look there.
		var mode [2]byte
		if _, err := f.ReadAt(mode[:], st.Ino*32+4); err != nil {
			return err
		}
		n := node{Mode: uint32(binary.LittleEndian.Uint16(mode[:])), UID: int(st.UID), GID: int(st.GID), Rdev: uint64(st.Rdev), Nlink: st.Nlink,
			Mtime: time.Unix(int64(st.Mtime), int64(st.MtimeNs)), ID: st.Ino, Xattrs: xattrText(st.Xattrs)}
		switch {
		case fi.Mode().IsRegular():
			n.Size = fi.Size()
			if utf8.ValidString(p) {
				f, err := fsys.Open(p)
				if err != nil {
					return err
				}
				defer f.Close()
				n.Content = digest(t, f)
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			n.Size = fi.Size()
			n.Content, err = fsys.(fs.ReadLinkFS).ReadLink(p)
		case fi.IsDir():
			n.Nlink = 0
		}
		l[p] = n
		if fi.IsDir() && !utf8.ValidString(p) {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// xattrText mends go-erofs's names of access control lists.
func xattrText(xattrs map[string]string) string {
	m := map[string]string{}
	for name, value := range xattrs {
		m[strings.TrimSuffix(name, ".")] = value
	}
	return fmt.Sprintf("%q", m)
}

// fsck lets erofs-utils judge an image.
func fsck(t *testing.T, image string) {
	t.Helper()
	out, err := exec.Command("fsck.erofs", "--extract", image).CombinedOutput()
	if err != nil || strings.Contains(string(out), "<E>") {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
}

// mounted lets the kernel show an image. Only root can; false otherwise.
func mounted(t *testing.T, image string) (listing, bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil, false
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", image, dir).CombinedOutput(); err != nil {
		t.Logf("no EROFS of the kernel here, go-erofs and fsck.erofs judge alone: %v: %s", err, out)
		return nil, false
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	return listDir(t, dir), true
}

// same compares two listings.
func same(t *testing.T, what string, got, want listing) {
	t.Helper()
	g, w := got.lines(), want.lines()
	for i := 0; i < len(g) || i < len(w); i++ {
		switch {
		case i >= len(g):
			t.Errorf("%s: missing %s", what, w[i])
		case i >= len(w):
			t.Errorf("%s: unexpected %s", what, g[i])
		case g[i] != w[i]:
			t.Errorf("%s:\n got %s\nwant %s", what, g[i], w[i])
		}
		if t.Failed() && i > 20 {
			return
		}
	}
}

// listRaw describes an image's files in a word or two.
func listRaw(t *testing.T, image io.ReaderAt) []string {
	t.Helper()
	fsys, err := goerofs.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*goerofs.Stat)
		what := p
		switch {
		case p == ".":
		case fi.IsDir():
			what += " dir"
		case fi.Mode().IsRegular():
			b, err := fs.ReadFile(fsys, p)
			if err != nil {
				return err
			}
			what += " " + string(b)
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := fsys.(fs.ReadLinkFS).ReadLink(p)
			if err != nil {
				return err
			}
			what += " ->" + to
		case fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0:
			what += " whiteout"
		}
		if st.Xattrs["trusted.overlay.opaque"] == "y" {
			what += " opaque"
			delete(st.Xattrs, "trusted.overlay.opaque")
		}
		for name := range st.Xattrs {
			what += " " + name
		}
		if what != "." {
			out = append(out, what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// readBack reads all that go-erofs can name.
func readBack(t *testing.T, image io.ReaderAt) {
	t.Helper()
	fsys, err := goerofs.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if !fs.ValidPath(p) || strings.ContainsRune(p, '\\') {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		if d.Type().IsRegular() {
			_, err = fs.ReadFile(fsys, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
