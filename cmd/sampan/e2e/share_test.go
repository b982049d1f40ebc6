package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// makePosix builds the suite for shared folders as a program for a container.
func makePosix(root, bin string) error {
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-o", filepath.Join(bin, "posix.test"), "./host/share/posixtest")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build posixtest: %w\n%s", err, out)
	}
	return nil
}

// One machine, one folder of the host, two containers.
func TestShare(t *testing.T) {
	h := newHome(t)
	h.load(t)
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		h.sampan(t, "run", "-d", "--name", name, "-v", dir+":/w", "-v", files.bin+":/bin.host:ro", "busybox", "sleep", "100000")
	}
	defer h.sampan(t, "rm", "-f", "one", "two")
	t.Run("suite", func(t *testing.T) { testShareSuite(t, h) })
	t.Run("append", func(t *testing.T) { testShareAppend(t, h, dir) })
	t.Run("agree", func(t *testing.T) { testShareAgrees(t, h, dir) })
	t.Run("replace", func(t *testing.T) { testShareReplace(t, h, dir) })
	t.Run("sync", func(t *testing.T) { testShareSync(t, h, dir) })
	t.Run("locks", func(t *testing.T) { testShareLocks(t, h) })
}

// testShareSync has `sync` in a container bring what it wrote to the host's
// disk: cachestat(2) tells the pages that are still to be written.
func testShareSync(t *testing.T, h *home, dir string) {
	path := filepath.Join(dir, "synced")
	unwritten := func() uint64 {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Cachestat_t
		err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
		if errors.Is(err, unix.ENOSYS) {
			skip(t, "the host's kernel has no cachestat (Linux 6.5 has)")
		} else if err != nil {
			t.Fatal(err)
		}
		return st.Dirty + st.Writeback
	}
	h.sampan(t, "exec", "one", "dd", "if=/dev/zero", "of=/w/synced", "bs=64k", "count=16")
	if unwritten() == 0 {
		skip(t, "%s is in a file system that keeps nothing to be written later", dir)
	}
	h.sampan(t, "exec", "one", "sync")
	if n := unwritten(); n != 0 {
		t.Errorf("%d pages are still to be written after sync", n)
	}
}

// testShareSuite runs host/share/posixtest in the container, as two users.
func testShareSuite(t *testing.T, h *home) {
	for _, uid := range []string{"0", "1000"} {
		sub := "/w/suite" + uid
		h.sampan(t, "exec", "-u", uid+":"+uid, "one", "mkdir", sub)
		r := h.try(t, "", "sampan", "exec", "-u", uid+":"+uid, "-e", "SAMPAN_POSIX_DIR="+sub, "-e", "TMPDIR=/tmp", "one",
			"/bin.host/posix.test", "-test.v", "-test.run", "^TestFolder$")
		if n := strings.Count(r.stdout, "--- PASS: TestFolder/"); r.code != 0 || n < 20 {
			t.Errorf("as uid %s: exit code %d, %d passed\n%s%s", uid, r.code, n, r.stdout, r.stderr)
		}
	}
}

// testShareAppend has two containers and the host append to one file at once.
// At each of the marks a container waits until the other has got there and the
// host has said so in the file, and the host goes on until both are done: so
// lines of all three lie among each other, however fast one of them is.
func testShareAppend(t *testing.T, h *home, dir string) {
	const each = 100
	marks := []int{1, 34, 67}
	log := filepath.Join(dir, "log")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do
		case $i in %d|%d|%d) until grep -q "^mark $i$" /w/log; do usleep 50000; done;; esac
		echo $0 $i; i=$((i+1)); done >> /w/log`, each, marks[0], marks[1], marks[2])
	done := make(chan error, 2)
	for _, name := range []string{"one", "two"} {
		cmd := h.command(t, "sampan", "exec", name, "sh", "-c", script, name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { done <- cmd.Wait() }()
	}
	f, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	say := func(who string, n int) {
		if _, err := fmt.Fprintf(f, "%s %d\n", who, n); err != nil {
			t.Fatal(err)
		}
	}
	lines, marked := 0, 0
	for end, running := time.Now().Add(100*time.Second), 2; running > 0 || lines < each; lines++ {
		if time.Now().After(end) {
			t.Fatalf("after 100 s %d of the containers still append, %d marks are reached", running, marked)
		}
		say("host", lines)
		if marked < len(marks) {
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			there := func(who string) bool { return bytes.Contains(b, fmt.Appendf(nil, "%s %d\n", who, marks[marked]-1)) }
			if there("one") && there("two") {
				say("mark", marks[marked])
				marked++
			}
		}
		select {
		case err := <-done:
			if running--; err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Millisecond): // among the containers' lines
		}
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	marked = 0
	for line := range strings.Lines(string(b)) {
		who, number, whole := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.Atoi(number)
		if who == "mark" && marked < len(marks) && n == marks[marked] {
			marked++
			if next["one"] != n || next["two"] != n || next["host"] == 0 {
				t.Fatalf("mark %d is behind %v", n, next)
			}
			continue
		}
		if err != nil || !whole || !strings.HasSuffix(line, "\n") || n != next[who] {
			t.Fatalf("%q where %d comes next", line, next[who])
		}
		next[who]++
	}
	if len(next) != 3 || next["one"] != each || next["two"] != each || next["host"] != lines || marked != len(marks) {
		t.Errorf("lines: %v, and %d of the host; %d marks", next, lines, marked)
	}
	if got := h.sampan(t, "exec", "two", "cat", "/w/log"); got != string(b) {
		t.Errorf("the container reads %d bytes, the host %d; or others", len(got), len(b))
	}
}

// testShareLocks has one container lock a file, whole and a part: another can do
// neither, until the first is killed, which it is.
func testShareLocks(t *testing.T, h *home) {
	onceAsUser(t)
	lock := func(name string, options ...string) []string {
		return slices.Concat([]string{"exec", "-e", "SAMPAN_POSIX_LOCK=/w/lock"}, options,
			[]string{name, "/bin.host/posix.test", "-test.run", "^TestLock$"})
	}
	const free, taken = "flock: <nil>, record: <nil>\n", "flock: resource temporarily unavailable, record: resource temporarily unavailable\n"
	holder := h.command(t, "sampan", lock("one", "-e", "SAMPAN_POSIX_HOLD=1")...)
	stdout, err := holder.StdoutPipe()
	if err := errors.Join(err, holder.Start()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != free {
		t.Fatalf("the first container says %q, %v", line, err)
	}
	if got := h.sampan(t, lock("two")...); !strings.HasPrefix(got, taken) {
		t.Errorf("beside a container that holds the locks: %q", got)
	}
	h.sampan(t, "kill", "one")
	if err := holder.Wait(); err == nil {
		t.Error("what ran in the killed container has succeeded")
	}
	if got := h.sampan(t, lock("two")...); !strings.HasPrefix(got, free) {
		t.Errorf("after that container was killed: %q", got)
	}
}

// testShareAgrees changes a file on each side in turn; the others see it at
// once, whether it was changed in place or replaced.
func testShareAgrees(t *testing.T, h *home, dir string) {
	path := filepath.Join(dir, "common")
	sides := []struct {
		name           string
		write, replace func(text string)
		read           func() string
	}{
		{"host",
			func(text string) { os.WriteFile(path, []byte(text), 0o666) },
			func(text string) {
				os.WriteFile(path+".new", []byte(text), 0o666)
				os.Rename(path+".new", path)
			},
			func() string { b, _ := os.ReadFile(path); return string(b) }},
		{"one", nil, nil, nil}, {"two", nil, nil, nil},
	}
	for i := range sides[1:] {
		s := &sides[i+1]
		s.write = func(text string) { h.sampan(t, "exec", s.name, "sh", "-c", `printf %s "$0" > /w/common`, text) }
		s.replace = func(text string) {
			h.sampan(t, "exec", s.name, "sh", "-c", `printf %s "$0" > /w/new && mv /w/new /w/common`, text)
		}
		s.read = func() string { return h.sampan(t, "exec", s.name, "cat", "/w/common") }
	}
	for _, writer := range sides {
		for how, change := range map[string]func(string){"in place": writer.write, "replaced": writer.replace} {
			text := how + " by " + writer.name
			change(text)
			for _, reader := range sides {
				if got := reader.read(); got != text {
					t.Errorf("%s: %s reads %q", text, reader.name, got)
				}
			}
		}
	}
	// Removed and made again on the host: gone and there, a second later at
	// most, since the name is one that a container has just made.
	within := func(what string, ok func(result) bool) {
		t.Helper()
		for end := time.Now().Add(time.Second); ; { // the promise
			late := time.Now().After(end)
			r := h.try(t, "", "sampan", "exec", "one", "cat", "/w/common")
			if ok(r) {
				return
			}
			if late {
				t.Errorf("%s a second ago, but the container reads %q, exit code %d", what, r.stdout, r.code)
				return
			}
		}
	}
	for range 2 {
		os.Remove(path)
		within("removed", func(r result) bool { return r.code != 0 })
		os.WriteFile(path, []byte("again"), 0o666)
		within("made again", func(r result) bool { return r.stdout == "again" })
	}
	// A list of names is a second old at most.
	h.sampan(t, "exec", "one", "ls", "/w")
	if err := os.WriteFile(filepath.Join(dir, "listed"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // the promise
	if got := h.sampan(t, "exec", "one", "ls", "/w"); !strings.Contains(got, "listed") {
		t.Errorf("after a second the list is %q", got)
	}
}

// testShareReplace replaces an executable on the host and runs it in the
// container, over and over: each run is of the new one. Under TCG this is also
// about translated code.
func testShareReplace(t *testing.T, h *home, dir string) {
	runs := 100
	if nightly() {
		runs = 1000
	}
	// Ends by the end of its input.
	cmd := h.command(t, "sampan", "exec", "-i", "one", "sh", "-c", "while read x; do /w/program || echo failed; done")
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	program := filepath.Join(dir, "program")
	for i := range runs {
		text := fmt.Sprintf("%07d\n", i)
		var err error
		if i%2 == 0 { // as compilers do, and as cp does
			err = errors.Join(os.WriteFile(program+".new", printer(text), 0o755), os.Rename(program+".new", program))
		} else {
			err = os.WriteFile(program, printer(text), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(stdin, "\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := lines.ReadString('\n'); err != nil || got != text {
			t.Fatalf("run %d prints %q, %v", i, got, err)
		}
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// printer is a static amd64 program that prints 8 bytes, which are part of its
// code. The code begins at the file's second page, and more follows.
func printer(text string) []byte {
	var code bytes.Buffer
	code.Write([]byte{0x48, 0xb8}) // mov rax, text
	code.WriteString(text)
	code.Write([]byte{
		0x50,             // push rax
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 8, 0, 0, 0, // mov edx, 8
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0xb8, 1, 0, 0, 0, // mov eax, 1: write
		0x0f, 0x05, // syscall
		0x31, 0xff, // xor edi, edi
		0xb8, 60, 0, 0, 0, // mov eax, 60: exit
		0x0f, 0x05, // syscall
	})
	const page, base, size = 0x1000, 0x400000, 0x10000
	file := make([]byte, size)
	le := binary.LittleEndian
	// Elf64_Ehdr and one Elf64_Phdr (System V ABI).
	copy(file, "\x7fELF\x02\x01\x01")
	le.PutUint16(file[16:], 2)         // ET_EXEC
	le.PutUint16(file[18:], 62)        // EM_X86_64
	le.PutUint32(file[20:], 1)         // EV_CURRENT
	le.PutUint64(file[24:], base+page) // e_entry
	le.PutUint64(file[32:], 64)        // e_phoff
	le.PutUint16(file[52:], 64)        // e_ehsize
	le.PutUint16(file[54:], 56)        // e_phentsize
	le.PutUint16(file[56:], 1)         // e_phnum
	le.PutUint32(file[64:], 1)         // PT_LOAD
	le.PutUint32(file[68:], 5)         // PF_R|PF_X
	le.PutUint64(file[64+16:], base)   // p_vaddr
	le.PutUint64(file[64+32:], size)   // p_filesz
	le.PutUint64(file[64+40:], size)   // p_memsz
	le.PutUint64(file[64+48:], page)   // p_align
	copy(file[page:], code.Bytes())
	return file
}
