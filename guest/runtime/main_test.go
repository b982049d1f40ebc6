package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is four programs: the tests on the host; PID 1 of the guest, where
// the tests of containers run (see vm_test.go); stage 2 there; and a container's
// (peek_test.go).
func TestMain(m *testing.M) {
	Main()
	if os.Args[0] == peekName {
		os.Exit(peek(os.Args[1:]))
	}
	if os.Getpid() == 1 {
		guestMain(m)
	}
	os.Exit(m.Run())
}

// inGuest skips, on the host, a test that runs in the guest: TestGuest runs it.
func inGuest(t *testing.T) {
	t.Helper()
	if os.Getpid() != 1 {
		t.Skip("runs inside TestGuest")
	}
}

var kids Children

// guestMain is PID 1. It never returns.
func guestMain(m *testing.M) {
	code := 1
	if err := bootGuest(); err != nil {
		fmt.Println("boot:", err)
	} else {
		go kids.Run(context.Background())
		code = m.Run()
	}
	fmt.Printf("guest tests ended with code %d\n", code)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// bootGuest makes a root that can be pivoted from, and what the tests use.
func bootGuest() error {
	for _, step := range []struct{ source, target, kind, data string }{
		{"root", "/run", "tmpfs", ""},
	} {
		if err := unix.Mount(step.source, step.target, step.kind, 0, step.data); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/root", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", "/run/root", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Chdir("/run/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	for _, step := range []struct{ source, target, kind, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"dev", "/dev", "devtmpfs", ""},
		{"cgroup", "/sys/fs/cgroup", "cgroup2", "nsdelegate"},
		{"tmp", "/tmp", "tmpfs", ""},
	} {
		if err := os.MkdirAll(step.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(step.source, step.target, step.kind, 0, step.data); err != nil {
			return fmt.Errorf("mount %s: %w", step.target, err)
		}
	}
	os.Setenv("PATH", "/bin:/sbin")
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/sampan"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := delegate(dir); err != nil {
			return err
		}
	}
	// As guest/boot does: what is patched comes before the second processor.
	const hold = "/sys/fs/cgroup/hold"
	if err := os.Mkdir(hold, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(hold+"/cpu.max", []byte("1000000 1000000"), 0); err != nil {
		return err
	}
	if err := HoldDevices(hold); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/devices/system/cpu/cpu1/online", []byte("1"), 0); err != nil {
		return err
	}
	return makeRootfs("/tmp/image")
}

// delegate hands a cgroup's controllers down.
func delegate(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+cpu +memory +pids +cpuset +io"), 0)
}

// makeRootfs makes a small image: busybox and a user database.
func makeRootfs(dir string) error {
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "private"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), box, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "cat", "id", "echo", "true", "sleep", "ls", "stty", "tty", "ps", "env", "pwd", "hostname", "mount", "kill", "mknod", "touch", "head", "grep", "readlink", "stat", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":   "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
		"etc/group":    "root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\n",
		"bin/plain":    "not executable\n",
		"bin/noformat": "no format",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "bin/noformat"), 0o755)
}
