package posixtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func testTruncate(t *testing.T, dir string) {
	a := dir + "/a"
	fd := open(t, a, unix.O_RDWR|unix.O_CREAT, 0o644)
	pwrite(t, fd, "0123456789", 0)
	other := open(t, a, unix.O_RDONLY, 0)
	check(t, unix.Ftruncate(fd, 4))
	reads(t, other, 0, "0123")
	check(t, unix.Truncate(a, 8))
	reads(t, other, 0, "0123\x00\x00\x00\x00")
	pwrite(t, fd, "x", 20)
	if st := stat(t, a); st.Size != 21 {
		t.Errorf("written behind the end: %d bytes", st.Size)
	}
	// What was cut off does not come back.
	check(t, os.WriteFile(a, bytes.Repeat([]byte{7}, 3*4096), 0o644))
	check(t, unix.Truncate(a, 4096+10))
	check(t, unix.Truncate(a, 3*4096))
	b, err := os.ReadFile(a)
	check(t, err)
	for i, v := range b {
		if (v != 7) != (i >= 4096+10) {
			t.Fatalf("byte %d is %d", i, v)
		}
	}
	want(t, "truncate of a folder", unix.Truncate(dir, 0), unix.EISDIR)
	want(t, "ftruncate, read-only", unix.Ftruncate(other, 0), unix.EINVAL)
	want(t, "a negative size", unix.Truncate(a, -1), unix.EINVAL)
}

func testHoles(t *testing.T, dir string) {
	fd := open(t, dir+"/a", unix.O_RDWR|unix.O_CREAT, 0o644)
	const far = 1 << 30
	pwrite(t, fd, "begin", 0)
	pwrite(t, fd, "end", far)
	check(t, unix.Fsync(fd))
	if st := stat(t, dir+"/a"); st.Size != far+3 || st.Blocks*512 > far/2 {
		t.Errorf("sparse file: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	hole, err := unix.Seek(fd, 0, unix.SEEK_HOLE)
	if err != nil || hole < 5 || hole > 1<<20 {
		t.Errorf("first hole at %d, %v", hole, err)
	}
	data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
	if err != nil || data <= hole || data > far {
		t.Errorf("data behind the hole at %d, %v", data, err)
	}
	_, err = unix.Seek(fd, far+3, unix.SEEK_DATA)
	want(t, "data behind the end", err, unix.ENXIO)
	reads(t, fd, far-4, "\x00\x00\x00\x00end")
}

func testFallocate(t *testing.T, dir string) {
	fd := open(t, dir+"/a", unix.O_RDWR|unix.O_CREAT, 0o644)
	if err := unix.Fallocate(fd, 0, 0, 1<<16); err == unix.EOPNOTSUPP {
		t.Log("the host's file system has no fallocate")
		return
	}
	if st := stat(t, dir+"/a"); st.Size != 1<<16 || st.Blocks*512 < 1<<16 {
		t.Errorf("reserved: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<16, 1<<16))
	if st := stat(t, dir+"/a"); st.Size != 1<<16 {
		t.Errorf("KEEP_SIZE: %d bytes", st.Size)
	}
	pwrite(t, fd, strings.Repeat("x", 3*4096), 0)
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096))
	b := make([]byte, 3*4096)
	if _, err := unix.Pread(fd, b, 0); err != nil || b[4095] != 'x' || b[4096] != 0 || b[8191] != 0 || b[8192] != 'x' {
		t.Errorf("hole: %v, %q %q %q %q", err, b[4095], b[4096], b[8191], b[8192])
	}
	ro := open(t, dir+"/a", unix.O_RDONLY, 0)
	want(t, "read-only", unix.Fallocate(ro, 0, 0, 1), unix.EBADF)
}

func testLocks(t *testing.T, dir string) {
	a := open(t, dir+"/a", unix.O_RDWR|unix.O_CREAT, 0o644)
	b := open(t, dir+"/a", unix.O_RDWR, 0)
	check(t, unix.Flock(a, unix.LOCK_EX))
	want(t, "a second flock", unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	check(t, unix.Flock(a, unix.LOCK_SH))
	want(t, "shared flock", unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB), 0)
	check(t, unix.Flock(a, unix.LOCK_UN))
	check(t, unix.Flock(b, unix.LOCK_UN))
	lock := func(fd int, kind int16, from, n int64) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: from, Len: n})
	}
	check(t, lock(a, unix.F_WRLCK, 0, 100))
	want(t, "an overlapping lock", lock(b, unix.F_WRLCK, 50, 100), unix.EAGAIN)
	want(t, "a lock beside it", lock(b, unix.F_WRLCK, 100, 100), 0)
	seen := unix.Flock_t{Type: unix.F_RDLCK, Len: 10}
	check(t, unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &seen))
	if seen.Type != unix.F_WRLCK || seen.Len != 100 {
		t.Errorf("F_GETLK: %+v", seen)
	}
	// A waiter gets the lock when its holder closes.
	c, err := unix.Open(dir+"/a", unix.O_RDWR, 0)
	check(t, err)
	check(t, unix.Flock(c, unix.LOCK_EX))
	got := make(chan error, 1)
	go func() { got <- unix.Flock(b, unix.LOCK_EX) }()
	unix.Close(c)
	check(t, <-got)
}

func testOpenUnlink(t *testing.T, dir string) {
	a := dir + "/a"
	fd := open(t, a, unix.O_RDWR|unix.O_CREAT, 0o644)
	pwrite(t, fd, "kept", 0)
	check(t, os.Remove(a))
	_, err := os.Stat(a)
	want(t, "a removed name", err, unix.ENOENT)
	write(t, a, "another")
	reads(t, fd, 0, "kept")
	pwrite(t, fd, "more", 4)
	reads(t, fd, 0, "keptmore")
	check(t, unix.Ftruncate(fd, 2))
	check(t, unix.Fchmod(fd, 0o600))
	check(t, unix.Fsync(fd))
	var st unix.Stat_t
	check(t, unix.Fstat(fd, &st))
	if st.Nlink != 0 || st.Size != 2 || st.Mode&0o777 != 0o600 {
		t.Errorf("without a name: %d links, %d bytes, mode %o", st.Nlink, st.Size, st.Mode)
	}
	again := open(t, fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
	reads(t, again, 0, "ke")
	holds(t, a, "another")
}

func testAppend(t *testing.T, dir string) {
	const each, writers = 50, 4
	a := dir + "/a"
	write(t, a, "")
	var all sync.WaitGroup
	for w := range writers {
		fd := open(t, a, unix.O_WRONLY|unix.O_APPEND, 0)
		all.Go(func() {
			for i := range each {
				if _, err := unix.Write(fd, fmt.Appendf(nil, "%d:%04d\n", w, i)); err != nil {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	b, err := os.ReadFile(a)
	check(t, err)
	next := map[int]int{}
	for line := range strings.Lines(string(b)) {
		var w, i int
		if _, err := fmt.Sscanf(line, "%d:%d\n", &w, &i); err != nil || next[w] != i {
			t.Fatalf("line %q where %d comes next: %v", line, next[w], err)
		}
		next[w]++
	}
	if len(b) != each*writers*len("0:0000\n") {
		t.Errorf("%d bytes", len(b))
	}
}

func testMmap(t *testing.T, dir string) {
	const size = 3 * 4096
	fd := open(t, dir+"/a", unix.O_RDWR|unix.O_CREAT, 0o644)
	check(t, unix.Ftruncate(fd, size))
	mmap := func(prot, flags int) []byte {
		t.Helper()
		m, err := unix.Mmap(fd, 0, size, prot, flags)
		check(t, err)
		t.Cleanup(func() { unix.Munmap(m) })
		return m
	}
	shared := mmap(unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	second := mmap(unix.PROT_READ, unix.MAP_SHARED)
	private := mmap(unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	copy(shared[5000:], "mapped")
	reads(t, fd, 4998, "\x00\x00mapped"+strings.Repeat("\x00", size-5006))
	if string(second[5000:5006]) != "mapped" || string(private[5000:5006]) != "mapped" {
		t.Error("another mapping does not see it")
	}
	copy(private[5000:], "secret")
	if string(shared[5000:5006]) != "mapped" {
		t.Error("a private change is seen")
	}
	pwrite(t, fd, "written", 9000)
	if string(shared[9000:9007]) != "written" {
		t.Errorf("the mapping shows %q", shared[9000:9007])
	}
	check(t, unix.Msync(shared, unix.MS_SYNC))
	b, err := os.ReadFile(dir + "/a")
	check(t, err)
	if len(b) != size || string(b[5000:5006]) != "mapped" || string(b[9000:9007]) != "written" {
		t.Error("the file does not have what was mapped")
	}
	// A mapping outlives descriptor and name.
	check(t, os.Remove(dir+"/a"))
	copy(shared, "still")
	if string(second[:5]) != "still" {
		t.Error("the mapping of a removed file")
	}
}

func testCopy(t *testing.T, dir string) {
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	check(t, os.WriteFile(dir+"/a", text, 0o644))
	in := open(t, dir+"/a", unix.O_RDONLY, 0)
	out := open(t, dir+"/b", unix.O_RDWR|unix.O_CREAT, 0o644)
	for left := len(text); left > 0; {
		n, err := unix.CopyFileRange(in, nil, out, nil, left, 0)
		if err != nil || n == 0 {
			t.Fatalf("copy_file_range: %d, %v", n, err)
		}
		left -= n
	}
	holds(t, dir+"/b", string(text))
	f, err := os.Create(dir + "/c")
	check(t, err)
	defer f.Close()
	var off int64
	for off < int64(len(text)) {
		if n, err := unix.Sendfile(int(f.Fd()), in, &off, len(text)); n == 0 || err != nil {
			t.Fatalf("sendfile: %d, %v", n, err)
		}
	}
	holds(t, dir+"/c", string(text))
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Error(err)
	}
}

func testTmpfile(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == unix.EOPNOTSUPP {
		t.Log("the host's file system has no O_TMPFILE")
		return
	}
	check(t, err)
	defer unix.Close(fd)
	pwrite(t, fd, "nameless", 0)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	check(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/a", unix.AT_SYMLINK_FOLLOW))
	holds(t, dir+"/a", "nameless")
}
