package share

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/host/share/posixtest"
)

func TestPOSIX(t *testing.T) {
	forUsers(t, func(t *testing.T, m mounted) {
		for name, test := range map[string]func(*testing.T, string, string){
			"files": testFiles, "names": testNames, "directory": testDirectory, "attributes": testXattrs, "space": testSpace,
		} {
			t.Run(name, func(t *testing.T) {
				check(t, os.Mkdir(filepath.Join(m.rw, name), 0o755))
				test(t, filepath.Join(m.rw, name), filepath.Join(m.host, name))
			})
		}
	})
}

// suiteEnv names the folder for TestSuiteIn.
const suiteEnv = "SAMPAN_SHARE_SUITE"

// TestSuite runs the suite for shared folders in mounts of the file system, as
// root of the guest and as another user.
func TestSuite(t *testing.T) {
	forUsers(t, func(t *testing.T, m mounted) {
		for _, uid := range []uint32{0, 1000} {
			dir := filepath.Join(m.rw, fmt.Sprint("suite", uid))
			as(t, int(uid), func() { check(t, os.Mkdir(dir, 0o755)) })
			cmd := exec.Command(filepath.Join(filepath.Dir(m.host), "serve"), "-test.run", "^TestSuiteIn$", "-test.v")
			cmd.Env = append(os.Environ(), suiteEnv+"="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Count(out, []byte("--- PASS")) < 20 {
				t.Errorf("as uid %d: %v\n%s", uid, err, out)
			}
		}
	})
}

// TestSuiteIn is TestSuite's other process.
func TestSuiteIn(t *testing.T) {
	dir := os.Getenv(suiteEnv)
	if dir == "" {
		t.Skip("TestSuite runs it")
	}
	posixtest.Run(t, dir)
}

func testFiles(t *testing.T, in, at string) {
	a := in + "/a"
	f, err := os.OpenFile(a, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	check(t, err)
	defer f.Close()
	if _, err := os.OpenFile(a, os.O_CREATE|os.O_EXCL, 0o644); !os.IsExist(err) {
		t.Errorf("O_EXCL: %v", err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	_, err = f.Write(data)
	check(t, err)
	check(t, f.Sync())
	if got, err := os.ReadFile(at + "/a"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("host reads %d bytes, %v", len(got), err)
	}
	g, err := os.OpenFile(a, os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	_, err = g.WriteString("end")
	check(t, err)
	g.Close()
	if got, err := os.ReadFile(a); err != nil || !bytes.HasSuffix(got, []byte("efend")) || len(got) != len(data)+3 {
		t.Errorf("appended: %d bytes, %v", len(got), err)
	}
	// The host's change shows at the next open, in content and size.
	for i := range 50 {
		text := fmt.Sprint("host wrote ", i*i*i)
		check(t, os.WriteFile(at+"/a", []byte(text), 0o644))
		if got, err := os.ReadFile(a); err != nil || string(got) != text {
			t.Fatalf("read %q, %v, want %q", got, err, text)
		}
	}
	check(t, os.Remove(a))
	_, err = f.WriteAt([]byte("still"), 0)
	check(t, err)
	b := make([]byte, 5)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "still" {
		t.Errorf("unlinked file: %q, %v", b, err)
	}
	check(t, f.Truncate(1))
	if fi, err := f.Stat(); err != nil || fi.Size() != 1 {
		t.Errorf("unlinked file: %v, %v", fi, err)
	}
	tmp, err := unix.Open(in, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	check(t, err)
	defer unix.Close(tmp)
	check(t, unix.Linkat(unix.AT_FDCWD, procPath(tmp), unix.AT_FDCWD, in+"/t", unix.AT_SYMLINK_FOLLOW))
	lstat(t, at+"/t")
}

func testNames(t *testing.T, in, at string) {
	write := func(name, text string) { t.Helper(); check(t, os.WriteFile(in+"/"+name, []byte(text), 0o644)) }
	read := func(name, text string) {
		t.Helper()
		if got, err := os.ReadFile(in + "/" + name); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v, want %q", name, got, err, text)
		}
	}
	write("a", "a")
	write("b", "b")
	check(t, os.Link(in+"/a", in+"/a2"))
	if st := lstat(t, in+"/a2"); st.Nlink != 2 || st.Ino != lstat(t, in+"/a").Ino {
		t.Errorf("hard link: %+v", st)
	}
	ren := func(a, b string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, in+"/"+a, unix.AT_FDCWD, in+"/"+b, flags)
	}
	if err := ren("a", "b", unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("NOREPLACE: %v", err)
	}
	check(t, ren("a", "b", unix.RENAME_EXCHANGE))
	read("a", "b")
	read("b", "a")
	check(t, ren("a", "b", 0))
	read("b", "b")
	check(t, os.Symlink("b", in+"/link"))
	read("link", "b")
	// A link on the host leads the guest through its own tree.
	check(t, os.Symlink("/proc/self/status", at+"/out"))
	if l, err := os.Readlink(in + "/out"); err != nil || l != "/proc/self/status" {
		t.Errorf("readlink: %q, %v", l, err)
	}
	check(t, os.Mkdir(in+"/d", 0o755))
	write("d/f", "f")
	if err := os.Remove(in + "/d"); err == nil {
		t.Error("a full directory goes away")
	}
	check(t, os.Rename(in+"/d", in+"/e"))
	read("e/f", "f")
	check(t, os.RemoveAll(in+"/e"))
	// Atomic replacement on the host: at once for what the host made, within a
	// second for what the guest has made just now.
	replace := func(name, text string) {
		check(t, os.WriteFile(at+"/new", []byte(text), 0o644))
		check(t, os.Rename(at+"/new", at+"/"+name))
	}
	for i := range 20 {
		replace("h", fmt.Sprint(i))
		read("h", fmt.Sprint(i))
	}
	// A large file soon.
	large := func(owner string) {
		check(t, os.WriteFile(at+"/new", []byte(owner), 0o644))
		check(t, os.Truncate(at+"/new", largeFile))
		check(t, os.Rename(at+"/new", at+"/large"))
	}
	first := func() string {
		f, err := os.Open(in + "/large")
		check(t, err)
		defer f.Close()
		b := make([]byte, 1)
		_, err = io.ReadFull(f, b)
		check(t, err)
		return string(b)
	}
	for i := range 10 {
		want := fmt.Sprint(i)
		large(want)
		begin := time.Now()
		for first() != want {
			if time.Since(begin) > time.Second {
				t.Fatal("a large file that the host has replaced a second ago is still the old one")
			}
		}
	}
	write("own", "guest")
	replace("own", "host")
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got, _ := os.ReadFile(in + "/own"); string(got) == "host" {
			break
		}
	}
	read("own", "host")
	for _, name := range []string{"sp ace", "ünï", "\xff\xfe", "-", string(bytes.Repeat([]byte("x"), 255))} {
		write(name, name)
		read(name, name)
	}
}

func testDirectory(t *testing.T, in, at string) {
	const n = 3000
	for i := range n {
		check(t, os.WriteFile(fmt.Sprintf("%s/f%04d", at, i), nil, 0o644))
	}
	d, err := os.Open(in)
	check(t, err)
	defer d.Close()
	seen := map[string]int{}
	for i := 0; ; i++ {
		names, err := d.Readdirnames(100)
		for _, name := range names {
			seen[name]++
		}
		if err == io.EOF {
			break
		}
		check(t, err)
		// Entries that come and go don't move the others.
		os.WriteFile(fmt.Sprintf("%s/new%d", at, i), nil, 0o644)
		os.Remove(fmt.Sprintf("%s/new%d", at, i-1))
	}
	for i := range n {
		if name := fmt.Sprintf("f%04d", i); seen[name] != 1 {
			t.Fatalf("%s seen %d times", name, seen[name])
		}
	}
	entries, err := os.ReadDir(in)
	check(t, err)
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			t.Fatal(err)
		}
	}
}

func testXattrs(t *testing.T, in, at string) {
	a := in + "/a"
	check(t, os.WriteFile(a, nil, 0o644))
	check(t, unix.Setxattr(a, "user.x", []byte("value"), 0))
	buf := make([]byte, 100)
	if n, err := unix.Getxattr(at+"/a", "user.x", buf); err != nil || string(buf[:n]) != "value" {
		t.Errorf("host: %q, %v", buf[:n], err)
	}
	if n, err := unix.Listxattr(a, buf); err != nil || string(buf[:n]) != "user.x\x00" {
		t.Errorf("list: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(a, recordAttr, buf); err != unix.ENODATA {
		t.Errorf("our own: %v", err)
	}
	check(t, unix.Removexattr(a, "user.x"))
}

func testSpace(t *testing.T, in, at string) {
	f, err := os.Create(in + "/a")
	check(t, err)
	defer f.Close()
	check(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<16))
	_, err = f.Write(make([]byte, 1<<16))
	check(t, err)
	check(t, f.Truncate(1<<20))
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || off < 1<<16 {
		t.Errorf("hole at %d, %v", off, err)
	}
	var a, b unix.Statfs_t
	check(t, unix.Statfs(in, &a))
	check(t, unix.Statfs(at, &b))
	if a.Blocks != b.Blocks || a.Bsize != b.Bsize {
		t.Errorf("statfs %+v, want %+v", a, b)
	}
	ts := []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 2e9, Nsec: 2}}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, in+"/a", ts, 0))
	if st := lstat(t, at+"/a"); st.Mtim != ts[1] || st.Atim != ts[0] {
		t.Errorf("times %v %v", st.Atim, st.Mtim)
	}
}
