//go:build linux

// Command sharework is PID 1 of the machine in which sampan-bench compares two
// virtio-fs devices. It mounts the shares named on the kernel's command line,
//
//	sharework.tags=A,B sharework.runs=N sharework.files=N sharework.mib=N
//
// and does the same work in each, in turn: the large file as often as runs
// says, the many files once. It prints a line per measurement,
//
//	sharework TAG NAME SECONDS
//
// then "sharework done" or "sharework failed: why", and turns the machine off.
package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("sharework failed:", err)
	} else {
		fmt.Println("sharework done")
	}
	unix.Sync()
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// work is what is done in each share.
type work struct {
	files int   // of the archive
	size  int64 // bytes of the large file
	tar   string
}

const (
	perFolder = 100
	// fileSize is about the median of a source tree's files.
	fileSize = 4 << 10
)

func run() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/tmp", "tmpfs"}} {
		os.MkdirAll(m.dir, 0o755)
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// What the translator needs one processor for is over; see vm/qemu.
	if err := os.WriteFile("/sys/devices/system/cpu/cpu1/online", []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Println("second processor:", err)
	}
	args, err := arguments()
	if err != nil {
		return err
	}
	tags := strings.Split(args["tags"], ",")
	runs, err1 := strconv.Atoi(args["runs"])
	files, err2 := strconv.Atoi(args["files"])
	mib, err3 := strconv.ParseInt(args["mib"], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	w := work{files: files, size: mib << 20, tar: "/tmp/many.tar"}
	if err := w.archive(); err != nil {
		return err
	}
	for _, tag := range tags {
		if err := mountShare(tag); err != nil {
			return err
		}
	}
	for i := range runs + 1 {
		steps := w.large
		if i == runs {
			steps = w.many
		}
		for _, tag := range tags {
			dir, err := folder("/run/" + tag)
			if err != nil {
				return err
			}
			if err := measure(tag, steps(dir)); err != nil {
				return fmt.Errorf("%s: %w", tag, err)
			}
		}
	}
	return nil
}

// arguments are the sharework.* words of the kernel's command line.
func arguments() (map[string]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	args := map[string]string{}
	for word := range strings.FieldsSeq(string(line)) {
		if rest, ok := strings.CutPrefix(word, "sharework."); ok {
			name, value, _ := strings.Cut(rest, "=")
			args[name] = value
		}
	}
	return args, nil
}

// mountShare mounts as the agent does, with its read-ahead.
func mountShare(tag string) error {
	dir := "/run/" + tag
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", tag, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(bdi, []byte("1024"), 0)
}

// folder is where to work in a share: its only entry (an export), or itself.
func folder(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) == 1 && entries[0].IsDir() {
		dir = filepath.Join(dir, entries[0].Name())
	}
	return dir, err
}

// archive makes the archive in memory.
func (w work) archive() error {
	f, err := os.Create(w.tar)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	t := tar.NewWriter(buf)
	content := make([]byte, fileSize)
	for i := range w.files {
		d := fmt.Sprintf("many/d%03d/", i/perFolder)
		if i%perFolder == 0 {
			if err := t.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return err
			}
		}
		h := tar.Header{Name: fmt.Sprintf("%sf%03d", d, i%perFolder), Mode: 0o644, Size: fileSize, Uid: 1000, Gid: 1000}
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), buf.Flush())
}

// step is a piece of work.
type step struct {
	name string // empty: not measured
	cold bool   // nothing of the share is cached when it begins
	run  func() error
}

// large is work with one large file.
func (w work) large(dir string) []step {
	big := filepath.Join(dir, "big")
	return []step{
		{"write", false, func() error { return w.write(big) }},
		{"read", true, func() error { return w.read(big) }},
		{"", false, func() error { return os.Remove(big) }},
	}
}

// many is work with many files.
func (w work) many(dir string) []step {
	many := filepath.Join(dir, "many")
	return []step{
		{"unpack", true, func() error { return busybox("tar", "-xf", w.tar, "-C", dir) }},
		{"stat", true, func() error { return w.walk(many, statFile) }},
		{"readback", true, func() error { return w.walk(many, readFile) }},
		{"remove", true, func() error { return os.RemoveAll(many) }},
	}
}

// measure takes the steps, each once.
func measure(tag string, steps []step) error {
	for _, s := range steps {
		if s.cold {
			unix.Sync()
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				return err
			}
		}
		begin := time.Now()
		if err := s.run(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if s.name != "" {
			fmt.Printf("sharework %s %s %.4f\n", tag, s.name, time.Since(begin).Seconds())
		}
	}
	return nil
}

func (w work) write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for range w.size / int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (w work) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block, got := make([]byte, 1<<20), int64(0)
	for {
		n, err := f.Read(block)
		got += int64(n)
		if err == io.EOF && got == w.size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, w.size, err)
		}
	}
}

// walk calls f for each file of the unpacked archive.
func (w work) walk(dir string, f func(path string) error) error {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		seen++
		return f(path)
	})
	if err == nil && seen != w.files {
		err = fmt.Errorf("%d files, want %d", seen, w.files)
	}
	return err
}

func statFile(path string) error {
	fi, err := os.Lstat(path)
	if err == nil && fi.Size() != fileSize {
		err = fmt.Errorf("%s: %d bytes", path, fi.Size())
	}
	return err
}

func readFile(path string) error {
	b, err := os.ReadFile(path)
	if err == nil && len(b) != fileSize {
		err = fmt.Errorf("%s: %d bytes", path, len(b))
	}
	return err
}

func busybox(args ...string) error {
	out, err := exec.Command("/bin/busybox", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("busybox %q: %w: %s", args, err, out)
	}
	return err
}
