// Package posixtest is what programs in a container expect of a shared folder:
// the behaviour that POSIX and Linux promise of a local file system. It runs on
// a local one, where it shows that it asks for no more than that, on a mount of
// host/share's file system, and in a container of the real machine.
package posixtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs all of the suite in dir, which the calling process owns, each test in
// a folder of its own.
func Run(t *testing.T, dir string) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, string)
	}{
		{"create", testCreate}, {"modes", testModes}, {"rename", testRename}, {"rename-dirs", testRenameDirs},
		{"links", testLinks}, {"symlinks", testSymlinks}, {"truncate", testTruncate}, {"holes", testHoles},
		{"fallocate", testFallocate}, {"locks", testLocks}, {"xattrs", testXattrs}, {"readdir", testReaddir},
		{"open-unlink", testOpenUnlink}, {"append", testAppend}, {"mmap", testMmap}, {"times", testTimes},
		{"names", testNames}, {"errors", testErrors}, {"special", testSpecial}, {"copy", testCopy},
		{"tmpfile", testTmpfile}, {"removed-dir", testRemovedDir},
	} {
		t.Run(test.name, func(t *testing.T) {
			sub := filepath.Join(dir, test.name)
			check(t, os.Mkdir(sub, 0o755))
			test.run(t, sub)
			check(t, os.RemoveAll(sub))
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails unless err is the errno; 0 is success.
func want(t *testing.T, what string, err error, errno unix.Errno) {
	t.Helper()
	if errno == 0 && err == nil || errno != 0 && errors.Is(err, errno) {
		return
	}
	t.Errorf("%s: %v, want %v", what, err, errno)
}

// open opens a file that the test's end closes.
func open(t *testing.T, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func write(t *testing.T, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o644))
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != text {
		t.Errorf("%s: %q, %v, want %q", path, b, err, text)
	}
}

func stat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func pwrite(t *testing.T, fd int, text string, off int64) {
	t.Helper()
	if n, err := unix.Pwrite(fd, []byte(text), off); n != len(text) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(text), off, n, err)
	}
}

func reads(t *testing.T, fd int, off int64, text string) {
	t.Helper()
	b := make([]byte, len(text)+1)
	if n, err := unix.Pread(fd, b, off); err != nil || string(b[:n]) != text {
		t.Errorf("read at %d: %q, %v, want %q", off, b[:max(n, 0)], err, text)
	}
}

func testCreate(t *testing.T, dir string) {
	a := dir + "/a"
	fd := open(t, a, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
	_, err := unix.Open(a, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
	want(t, "O_EXCL on a file", err, unix.EEXIST)
	check(t, os.Symlink("nowhere", dir+"/dangling"))
	_, err = unix.Open(dir+"/dangling", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o640)
	want(t, "O_EXCL on a link", err, unix.EEXIST)
	open(t, dir+"/dangling", unix.O_RDWR|unix.O_CREAT, 0o640)
	if st := stat(t, dir+"/nowhere"); st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("made through a link: mode %o", st.Mode)
	}
	// A file of mode 0 is open for whoever made it.
	none := open(t, dir+"/none", unix.O_RDWR|unix.O_CREAT, 0)
	pwrite(t, none, "x", 0)
	pwrite(t, fd, "text", 0)
	open(t, a, unix.O_WRONLY|unix.O_TRUNC, 0)
	if st := stat(t, a); st.Size != 0 || st.Nlink != 1 || int(st.Uid) != os.Geteuid() {
		t.Errorf("truncated by open: %+v", st)
	}
	old := unix.Umask(0o077)
	err = os.WriteFile(dir+"/masked", nil, 0o666)
	unix.Umask(old)
	check(t, err)
	if st := stat(t, dir+"/masked"); st.Mode&0o777 != 0o600 {
		t.Errorf("umask 077 leaves %o", st.Mode)
	}
	for i := range 50 {
		write(t, fmt.Sprintf("%s/f%d", dir, i), fmt.Sprint(i))
	}
	for i := range 50 {
		holds(t, fmt.Sprintf("%s/f%d", dir, i), fmt.Sprint(i))
	}
}

func testModes(t *testing.T, dir string) {
	a := dir + "/a"
	write(t, a, "x")
	for _, mode := range []uint32{0o600, 0o4755, 0o2755, 0o777, 0o444, 0} {
		check(t, unix.Chmod(a, mode))
		if st := stat(t, a); st.Mode != unix.S_IFREG|mode {
			t.Errorf("chmod %o: %o", mode, st.Mode)
		}
	}
	check(t, os.Mkdir(dir+"/d", 0o700))
	for _, mode := range []uint32{0o1777, 0o2775, 0o500, 0o755} {
		check(t, unix.Chmod(dir+"/d", mode))
		if st := stat(t, dir+"/d"); st.Mode != unix.S_IFDIR|mode {
			t.Errorf("chmod %o: %o", mode, st.Mode)
		}
	}
	// A write takes setuid away, but for root.
	check(t, unix.Chmod(a, 0o4777))
	fd := open(t, a, unix.O_WRONLY, 0)
	pwrite(t, fd, "y", 0)
	if st := stat(t, a); os.Geteuid() != 0 && st.Mode&unix.S_ISUID != 0 {
		t.Errorf("written by uid %d: %o", os.Geteuid(), st.Mode)
	}
	if os.Geteuid() == 0 {
		check(t, os.Chown(a, 12, 34))
		if st := stat(t, a); st.Uid != 12 || st.Gid != 34 || st.Mode&unix.S_ISUID != 0 {
			t.Errorf("chown: %d:%d %o", st.Uid, st.Gid, st.Mode)
		}
		return
	}
	want(t, "chown by uid 1000", os.Chown(a, 0, 0), unix.EPERM)
	check(t, unix.Chmod(a, 0o200))
	_, err := unix.Open(a, unix.O_RDONLY, 0)
	want(t, "read of mode 0200", err, unix.EACCES)
	check(t, unix.Chmod(dir+"/d", 0o500))
	want(t, "create in mode 0500", os.Mkdir(dir+"/d/x", 0o755), unix.EACCES)
	check(t, unix.Chmod(dir+"/d", 0o755))
}

func testRename(t *testing.T, dir string) {
	ren := func(a, b string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, dir+"/"+a, unix.AT_FDCWD, dir+"/"+b, flags)
	}
	write(t, dir+"/a", "a")
	write(t, dir+"/b", "b")
	want(t, "NOREPLACE", ren("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	want(t, "NOREPLACE to nothing", ren("a", "c", unix.RENAME_NOREPLACE), 0)
	holds(t, dir+"/c", "a")
	want(t, "EXCHANGE", ren("c", "b", unix.RENAME_EXCHANGE), 0)
	holds(t, dir+"/c", "b")
	holds(t, dir+"/b", "a")
	want(t, "EXCHANGE with nothing", ren("c", "none", unix.RENAME_EXCHANGE), unix.ENOENT)
	want(t, "both flags", ren("c", "b", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	// What is open stays, under whatever name or none.
	covered := open(t, dir+"/b", unix.O_RDWR, 0)
	moved := open(t, dir+"/c", unix.O_RDWR, 0)
	want(t, "over an open file", ren("c", "b", 0), 0)
	reads(t, covered, 0, "a")
	pwrite(t, moved, "new", 0)
	holds(t, dir+"/b", "new")
	var st unix.Stat_t
	check(t, unix.Fstat(covered, &st))
	if st.Nlink != 0 {
		t.Errorf("the covered file has %d links", st.Nlink)
	}
	check(t, os.Link(dir+"/b", dir+"/b2"))
	want(t, "onto its own other name", ren("b", "b2", 0), 0) // POSIX: nothing happens
	if st := stat(t, dir+"/b"); st.Nlink != 2 {
		t.Errorf("renamed to its own other name: %d links", st.Nlink)
	}
	want(t, "from nothing", ren("none", "x", 0), unix.ENOENT)
}

func testRenameDirs(t *testing.T, dir string) {
	for _, d := range []string{"/d/sub/deep", "/empty", "/full/x"} {
		check(t, os.MkdirAll(dir+d, 0o755))
	}
	write(t, dir+"/d/sub/f", "text")
	write(t, dir+"/file", "")
	f := open(t, dir+"/d/sub/f", unix.O_RDONLY, 0)
	sub := open(t, dir+"/d/sub", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	want(t, "over a full folder", unix.Rename(dir+"/d", dir+"/full"), unix.ENOTEMPTY)
	want(t, "into itself", unix.Rename(dir+"/d", dir+"/d/sub/deep/d"), unix.EINVAL)
	want(t, "over a file", unix.Rename(dir+"/d", dir+"/file"), unix.ENOTDIR)
	want(t, "a file over a folder", unix.Rename(dir+"/file", dir+"/d"), unix.EISDIR)
	want(t, "over an empty folder", unix.Rename(dir+"/d", dir+"/empty"), 0)
	holds(t, dir+"/empty/sub/f", "text")
	want(t, "across folders", unix.Rename(dir+"/empty/sub", dir+"/full/sub"), 0)
	holds(t, dir+"/full/sub/f", "text")
	reads(t, f, 0, "text")
	var a, b unix.Stat_t
	check(t, unix.Fstatat(sub, "f", &a, 0))
	check(t, unix.Fstatat(sub, "..", &b, 0))
	if a.Ino != stat(t, dir+"/full/sub/f").Ino || b.Ino != stat(t, dir+"/full").Ino {
		t.Error("a moved folder that is open leads elsewhere")
	}
}

func testLinks(t *testing.T, dir string) {
	write(t, dir+"/a", "one")
	for i := range 20 {
		check(t, os.Link(dir+"/a", fmt.Sprintf("%s/l%d", dir, i)))
	}
	if st := stat(t, dir+"/l7"); st.Nlink != 21 || st.Ino != stat(t, dir+"/a").Ino {
		t.Errorf("21 names: %+v", st)
	}
	write(t, dir+"/l3", "two")
	check(t, os.Remove(dir+"/a"))
	holds(t, dir+"/l19", "two")
	if st := stat(t, dir+"/l0"); st.Nlink != 20 {
		t.Errorf("20 names: %d", st.Nlink)
	}
	want(t, "over a name", os.Link(dir+"/l0", dir+"/l1"), unix.EEXIST)
	want(t, "of a folder", os.Link(dir, dir+"/d"), unix.EPERM)
	check(t, os.Symlink("l0", dir+"/s"))
	check(t, unix.Linkat(unix.AT_FDCWD, dir+"/s", unix.AT_FDCWD, dir+"/s2", 0))
	if st := stat(t, dir+"/s2"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Nlink != 2 {
		t.Errorf("link to a link: %+v", st)
	}
	if st := stat(t, dir); st.Nlink != 2 && st.Nlink != 1 { // btrfs counts no folders
		t.Errorf("a folder without folders has %d links", st.Nlink)
	}
}

func testSymlinks(t *testing.T, dir string) {
	long := string(bytes.Repeat([]byte("x/"), 1000))
	for name, target := range map[string]string{"rel": "f", "up": "../symlinks/f", "abs": dir + "/f", "long": long, "dangling": "none"} {
		check(t, os.Symlink(target, dir+"/"+name))
		if got, err := os.Readlink(dir + "/" + name); err != nil || got != target {
			t.Errorf("readlink %s: %.40q, %v", name, got, err)
		}
		if st := stat(t, dir+"/"+name); int(st.Size) != len(target) {
			t.Errorf("%s: %d bytes, want %d", name, st.Size, len(target))
		}
	}
	write(t, dir+"/f", "text")
	for _, name := range []string{"rel", "up", "abs"} {
		holds(t, dir+"/"+name, "text")
	}
	_, err := os.ReadFile(dir + "/dangling")
	want(t, "a dangling link", err, unix.ENOENT)
	check(t, os.Symlink("loop2", dir+"/loop1"))
	check(t, os.Symlink("loop1", dir+"/loop2"))
	_, err = os.ReadFile(dir + "/loop1")
	want(t, "a loop", err, unix.ELOOP)
	_, err = unix.Open(dir+"/rel", unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	want(t, "O_NOFOLLOW", err, unix.ELOOP)
	check(t, os.Remove(dir+"/rel"))
	holds(t, dir+"/f", "text")
	if _, err := os.Readlink(dir + "/f"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("readlink of a file: %v", err)
	}
}
