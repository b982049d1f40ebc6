package posixtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func testXattrs(t *testing.T, dir string) {
	a := dir + "/a"
	write(t, a, "")
	err := unix.Setxattr(a, "user.one", []byte("1"), unix.XATTR_CREATE)
	if err == unix.EOPNOTSUPP {
		t.Log("the host's file system has no user attributes")
		return
	}
	check(t, err)
	want(t, "XATTR_CREATE of another", unix.Setxattr(a, "user.one", nil, unix.XATTR_CREATE), unix.EEXIST)
	want(t, "XATTR_REPLACE of none", unix.Setxattr(a, "user.two", nil, unix.XATTR_REPLACE), unix.ENODATA)
	check(t, unix.Setxattr(a, "user.one", []byte("longer"), unix.XATTR_REPLACE))
	check(t, unix.Setxattr(a, "user.empty", nil, 0))
	buf := make([]byte, 100)
	if n, err := unix.Getxattr(a, "user.one", buf); err != nil || string(buf[:n]) != "longer" {
		t.Errorf("user.one: %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(a, "user.one", nil); err != nil || n != 6 {
		t.Errorf("size of user.one: %d, %v", n, err)
	}
	_, err = unix.Getxattr(a, "user.one", buf[:3])
	want(t, "too small a buffer", err, unix.ERANGE)
	if n, err := unix.Getxattr(a, "user.empty", buf); err != nil || n != 0 {
		t.Errorf("user.empty: %d, %v", n, err)
	}
	_, err = unix.Getxattr(a, "user.none", buf)
	want(t, "one that isn't there", err, unix.ENODATA)
	n, err := unix.Listxattr(a, buf)
	check(t, err)
	list := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	if len(list) != 2 || !strings.Contains(string(buf[:n]), "user.one\x00") || !strings.Contains(string(buf[:n]), "user.empty\x00") {
		t.Errorf("list: %q", list)
	}
	_, err = unix.Listxattr(a, buf[:5])
	want(t, "too small a list", err, unix.ERANGE)
	check(t, unix.Removexattr(a, "user.one"))
	want(t, "remove twice", unix.Removexattr(a, "user.one"), unix.ENODATA)
	check(t, unix.Setxattr(dir, "user.dir", []byte("x"), 0))
}

// testReaddir reads a folder in small pieces while entries come and go: what was
// there all the time is seen once.
func testReaddir(t *testing.T, dir string) {
	const n = 300
	for i := range n {
		write(t, fmt.Sprintf("%s/f%03d", dir, i), "")
	}
	d, err := os.Open(dir)
	check(t, err)
	defer d.Close()
	seen := map[string]int{}
	for i := 0; ; i++ {
		names, err := d.Readdirnames(40)
		for _, name := range names {
			seen[name]++
		}
		if err == io.EOF {
			break
		}
		check(t, err)
		for _, name := range names[:min(10, len(names))] { // seen already
			if strings.HasPrefix(name, "f") {
				check(t, os.Remove(dir+"/"+name))
			}
		}
		write(t, fmt.Sprintf("%s/new%d", dir, i), "")
	}
	for i := range n {
		if name := fmt.Sprintf("f%03d", i); seen[name] != 1 {
			t.Errorf("%s was seen %d times", name, seen[name])
		}
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	again, err := d.Readdirnames(-1)
	check(t, err)
	left, err := filepath.Glob(dir + "/*")
	check(t, err)
	if len(again) != len(left) {
		t.Errorf("rewound: %d names, then %d", len(again), len(left))
	}
	check(t, os.Mkdir(dir+"/sub", 0o755))
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.IsDir() != e.IsDir() || e.IsDir() != (e.Name() == "sub") {
			t.Errorf("%s: folder %v, %v", e.Name(), e.IsDir(), err)
		}
	}
}

func testTimes(t *testing.T, dir string) {
	a := dir + "/a"
	write(t, a, "x")
	set := []unix.Timespec{{Sec: 1e9, Nsec: 123456789}, {Sec: 2e9, Nsec: 987654321}}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, a, set, 0))
	if st := stat(t, a); st.Atim != set[0] || st.Mtim != set[1] {
		t.Errorf("times %v %v", st.Atim, st.Mtim)
	}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, a, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 5}}, 0))
	if st := stat(t, a); st.Atim != set[0] || st.Mtim.Sec != 5 {
		t.Errorf("UTIME_OMIT: %v %v", st.Atim, st.Mtim)
	}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, a, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0))
	fresh := stat(t, a)
	if fresh.Mtim.Sec < 1.7e9 || fresh.Mtim.Sec > 2e9*2 {
		t.Errorf("UTIME_NOW: %v", fresh.Mtim)
	}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, a, set, 0))
	write(t, a, "y")
	if st := stat(t, a); st.Mtim == set[1] {
		t.Error("a write leaves mtime")
	}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir, set, 0))
	write(t, dir+"/b", "")
	if st := stat(t, dir); st.Mtim == set[1] {
		t.Error("a new entry leaves the folder's mtime")
	}
	check(t, os.Symlink("none", dir+"/s"))
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/s", set, unix.AT_SYMLINK_NOFOLLOW))
	if st := stat(t, dir+"/s"); st.Mtim != set[1] {
		t.Errorf("a link's mtime: %v", st.Mtim)
	}
}

func testNames(t *testing.T, dir string) {
	names := []string{"sp ace", "ünï", "\xff\xfe", "-", "new\nline", ".hidden", "...", strings.Repeat("x", 255)}
	for _, name := range names {
		write(t, dir+"/"+name, name)
	}
	for _, name := range names {
		holds(t, dir+"/"+name, name)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(names) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	want(t, "256 bytes", os.WriteFile(dir+"/"+strings.Repeat("x", 256), nil, 0o644), unix.ENAMETOOLONG)
	deep := dir + "/deep" + strings.Repeat("/level", 40)
	check(t, os.MkdirAll(deep, 0o755))
	write(t, deep+"/f", "bottom")
	holds(t, deep+"/f", "bottom")
}

func testErrors(t *testing.T, dir string) {
	write(t, dir+"/f", "")
	check(t, os.MkdirAll(dir+"/d/e", 0o755))
	_, read := os.ReadFile(dir + "/d")
	_, list := os.ReadDir(dir + "/f")
	_, open := unix.Open(dir+"/d", unix.O_WRONLY, 0)
	_, slash := os.Stat(dir + "/f/x")
	for what, e := range map[string]struct {
		err   error
		errno unix.Errno
	}{
		"read a folder":           {read, unix.EISDIR},
		"list a file":             {list, unix.ENOTDIR},
		"write a folder":          {open, unix.EISDIR},
		"a file as a folder":      {slash, unix.ENOTDIR},
		"mkdir over a file":       {os.Mkdir(dir+"/f", 0o755), unix.EEXIST},
		"mkdir in nothing":        {os.Mkdir(dir+"/x/y", 0o755), unix.ENOENT},
		"rmdir of a file":         {unix.Rmdir(dir + "/f"), unix.ENOTDIR},
		"rmdir of a full folder":  {unix.Rmdir(dir + "/d"), unix.ENOTEMPTY},
		"unlink of a folder":      {unix.Unlink(dir + "/d"), unix.EISDIR},
		"unlink of nothing":       {unix.Unlink(dir + "/none"), unix.ENOENT},
		"rmdir of .":              {unix.Rmdir(dir + "/d/."), unix.EINVAL},
		"a program without x":     {unix.Access(dir+"/f", unix.X_OK), unix.EACCES},
		"a device":                {mknodAsUser(dir + "/dev"), unix.EPERM},
		"chmod of nothing":        {unix.Chmod(dir+"/none", 0o644), unix.ENOENT},
		"an attribute of nothing": {unix.Setxattr(dir+"/none", "user.x", nil, 0), unix.ENOENT},
	} {
		want(t, what, e.err, e.errno)
	}
}

// mknodAsUser makes a device, which only root may, and in a share nobody.
func mknodAsUser(path string) error {
	if os.Geteuid() == 0 {
		return unix.EPERM // a local file system lets root
	}
	return unix.Mknod(path, unix.S_IFCHR|0o600, 0x103)
}

func testSpecial(t *testing.T, dir string) {
	fifo := dir + "/fifo"
	check(t, unix.Mkfifo(fifo, 0o640))
	got := make(chan string, 1)
	go func() {
		b, err := os.ReadFile(fifo)
		got <- fmt.Sprint(string(b), err)
	}()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	check(t, err)
	_, err = w.WriteString("through")
	check(t, errors.Join(err, w.Close()))
	if s := <-got; s != "through<nil>" {
		t.Errorf("fifo: %s", s)
	}
	// A socket's path is short; the suite's may not be.
	d := open(t, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	path := fmt.Sprintf("/proc/self/fd/%d/sock", d)
	ln, err := net.Listen("unix", path)
	check(t, err)
	defer ln.Close()
	if st := stat(t, dir+"/sock"); st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Errorf("socket: mode %o", st.Mode)
	}
	c, err := net.Dial("unix", path)
	check(t, err)
	c.Close()
}

// testRemovedDir works in a folder that has no name any more.
func testRemovedDir(t *testing.T, dir string) {
	check(t, os.Mkdir(dir+"/d", 0o755))
	d := open(t, dir+"/d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, os.Remove(dir+"/d"))
	_, err := unix.Openat(d, "f", unix.O_CREAT|unix.O_RDWR, 0o644)
	want(t, "create in it", err, unix.ENOENT)
	var st unix.Stat_t
	check(t, unix.Fstat(d, &st))
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("mode %o", st.Mode)
	}
	check(t, os.Mkdir(dir+"/d", 0o755))
	if now := stat(t, dir+"/d"); now.Ino == st.Ino {
		t.Error("a new folder has the number of one that is open")
	}
	if n, err := unix.Getdents(d, make([]byte, 4096)); n > 0 || err != nil && err != unix.ENOENT {
		t.Errorf("list: %d, %v", n, err)
	}
}
