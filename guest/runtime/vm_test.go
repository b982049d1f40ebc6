package runtime

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sampan/kernel"
)

// bundleDir is the guest bundle: SAMPAN_GUEST, or dist/guest-amd64 of the tree.
func bundleDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("SAMPAN_GUEST"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			dir = filepath.Join(dir, "dist", "guest-amd64")
			if _, err := os.Stat(filepath.Join(dir, kernel.ManifestFile)); err != nil {
				t.Fatalf("no guest bundle in %s: run `make guest`", dir)
			}
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("no go.mod above the test")
	return ""
}

// TestGuest boots this test binary as PID 1 of a guest, runs the tests of
// containers there, and reports each as a subtest.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM")
	}
	bundle, err := kernel.Open(bundleDir(t))
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	exe := filepath.Join(t.TempDir(), "init.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-E sampan/guest/runtime/stage2.entry", "-o", exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the guest has no C library
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's tests: %v\n%s", err, out)
	}
	exe32 := filepath.Join(t.TempDir(), "seccomp32")
	build = exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", exe32, "./testdata/seccomp32")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=386")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a 32-bit program: %v\n%s", err, out)
	}
	first, err := bundle.ReadInitrd()
	if err != nil {
		t.Fatal(err)
	}
	if err := makeInitrd(initrd, first, exe, exe32); err != nil {
		t.Fatal(err)
	}
	limit, execs := 5*time.Minute, *guestExecs
	if os.Getenv("SAMPAN_NIGHTLY") != "" {
		limit, execs = 15*time.Minute, 1000
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args := []string{
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi",
		"-cpu", "max,cx16=off,erms=off,fsrm=off", "-smp", "2", "-m", "512", "-serial", "stdio", "-monitor", "none",
		"-kernel", bundle.Kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init.test cryptomgr.notests maxcpus=1 no_ipi_broadcast=1 -- -test.v -test.run=" + *guestRun + " -guest.execs=" + strconv.Itoa(execs),
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Run(); err != nil {
		t.Fatalf("qemu: %v\n%s", err, console.String())
	}
	report(t, console.String())
}

// makeInitrd appends a cpio archive with the test binaries to the bundle's.
func makeInitrd(name string, first []byte, test, exe32 string) error {
	exe, err := os.ReadFile(test)
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	w.Write(first)
	entry(w, "init.test", 0o100755, exe)
	entry(w, "stages", 0o040755, nil)
	for path := range strings.SplitSeq(*guestStages, ",") {
		if path == "" {
			continue
		}
		stage, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		entry(w, "stages/"+filepath.Base(path), 0o100755, stage)
	}
	small, err := os.ReadFile(exe32)
	if err != nil {
		return err
	}
	entry(w, "stages32", 0o040755, nil)
	entry(w, "stages32/seccomp32", 0o100755, small)
	if err := addStrace(w); err != nil {
		return err
	}
	entry(w, "TRAILER!!!", 0, nil)
	return w.Flush()
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// addStrace adds the host's strace with its libraries, in a folder of its own.
func addStrace(w io.Writer) error {
	exe, err := exec.LookPath("strace")
	if err != nil {
		return fmt.Errorf("%w: run `make deps`", err)
	}
	list, err := exec.Command("ldd", exe).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", exe, err)
	}
	entry(w, "strace", 0o040755, nil)
	names := []string{exe}
	for _, m := range library.FindAllStringSubmatch(string(list), -1) {
		names = append(names, m[1])
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		entry(w, "strace/"+filepath.Base(name), 0o100755, data)
	}
	return nil
}

// entry writes a file in cpio's "newc" format.
func entry(w io.Writer, name string, mode int, data []byte) {
	pad := func(n int) string { return strings.Repeat("\x00", (4-n%4)%4) }
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	io.WriteString(w, head+pad(len(head)))
	w.Write(data)
	io.WriteString(w, pad(len(data)))
}

var result = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+) \(.*\)`)

// report makes subtests of the guest's results.
func report(t *testing.T, console string) {
	console = strings.ReplaceAll(console, "\r", "")
	if !strings.Contains(console, "guest tests ended with code") {
		t.Fatalf("the guest didn't end its tests:\n%s", console)
	}
	t.Log(console)
	passed := 0
	for _, m := range result.FindAllStringSubmatch(console, -1) {
		if m[1] == "PASS" {
			passed++
		}
		t.Run(m[2], func(t *testing.T) {
			if m[1] == "FAIL" {
				t.Errorf("failed in the guest; reproduce:\n  go test ./guest/runtime -run TestGuest -guest.run %s -v", m[2])
			}
		})
	}
	if passed == 0 || !strings.Contains(console, "ended with code 0") {
		t.Errorf("%d tests passed in the guest; see the console", passed)
	}
}
