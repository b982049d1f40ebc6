package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onThread calls f in a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever
		done <- f()
	}()
	return <-done
}

// spaces are the flags of namespaces.
var spaces = map[string]uintptr{
	"mount": unix.CLONE_NEWNS, "uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC, "net": unix.CLONE_NEWNET,
	"pid": unix.CLONE_NEWPID, "cgroup": unix.CLONE_NEWCGROUP, "user": unix.CLONE_NEWUSER, "time": unix.CLONE_NEWTIME,
}

// attempts are system calls with arguments that matter.
func (f facts) attempts() {
	for name, flag := range spaces {
		if name != "user" && name != "time" { // no thread can
			f.errno("unshare "+name, onThread(func() error { return unix.Unshare(int(flag)) }))
			f.errno("setns "+name, onThread(func() error { return setns("/proc/1/ns/"+strings.Replace(name, "mount", "mnt", 1), int(flag)) }))
		}
		f.errno("clone "+name, clone(flag))
	}
	for _, p := range []uintptr{0, 8, 0x20000, 0x20008, 0x40000, 0x400000, 0xffffffff} {
		f.errno(fmt.Sprintf("personality %#x", p), onThread(func() error { return call(unix.SYS_PERSONALITY, p) }))
	}
	for family := range 46 {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW} {
			fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
			f.errno(fmt.Sprintf("socket %d %d", family, kind), err)
			if err == nil {
				unix.Close(fd)
			}
		}
	}
	f.mounting()
	f.errno("set priority", onThread(func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }))
	f.errno("real-time", onThread(func() error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	}))
	f.errno("chroot", onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return unix.Chroot("/")
	}))
	host, _ := os.Hostname()
	f.errno("sethostname", unix.Sethostname([]byte(host)))
	_, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	f.errno("kernel log size", err)
	_, err = unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 16))
	f.errno("kernel log", err)
	var tx unix.Timex
	_, err = unix.Adjtimex(&tx)
	f.errno("read clock", err)
	f.errno("own memory", call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid()), 0, 0, 0, 0, 0))
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
	f.errno("name to handle", err)
	if err == nil {
		fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_PATH)
		f.errno("open by handle", err)
		if err == nil {
			unix.Close(fd)
		}
	}
	f.errno("type for terminal", typeChar())
	for _, n := range []string{"mem", "environ", "auxv", "stack", "syscall"} {
		f.errno("process 1 "+n, open("/proc/1/"+n, unix.O_RDONLY))
	}
	_, err = os.Readlink("/proc/1/root")
	f.errno("process 1 root", err)
	f.first()
	score := atoi(f["self oom_score_adj"])
	f.errno("lower oom score", os.WriteFile("/proc/self/oom_score_adj", fmt.Append(nil, score-1), 0))
	os.WriteFile("/proc/self/oom_score_adj", fmt.Append(nil, score), 0)
	f.errno("raise core limit", unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 40, Max: 1 << 40}, nil))
	f.errno("trace a child", trace())
}

// first tells what may be done to the first process of the pid namespace, which
// may be another container's, and who else is there.
func (f facts) first() {
	if os.Getpid() == 1 {
		return
	}
	f.errno("process 1 write mem", open("/proc/1/mem", unix.O_WRONLY))
	f.errno("process 1 signal", unix.Kill(1, 0))
	f.errno("process 1 trace", onThread(func() error { return unix.PtraceSeize(1) }))
	var word [8]byte
	local, remote := unix.Iovec{Base: &word[0], Len: 8}, unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&spaces)), Len: 8}
	_, err := unix.ProcessVMReadv(1, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	f.errno("process 1 memory", err)
	pidfd, err := unix.PidfdOpen(1, 0)
	f.errno("process 1 pidfd", err)
	if err == nil {
		fd, err := unix.PidfdGetfd(pidfd, 0, 0)
		f.errno("process 1 descriptor", err)
		if err == nil {
			unix.Close(fd)
		}
		unix.Close(pidfd)
	}
	files, err := os.ReadDir("/proc/1/fd")
	f.errno("process 1 descriptors", err)
	for _, file := range files {
		target, err := os.Readlink("/proc/1/fd/" + file.Name())
		if err != nil {
			f.errno("process 1 descriptors", err)
		} else if strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/dev/") && !strings.HasPrefix(target, "/sys/fs/cgroup/") {
			f["process 1 descriptor "+target] = "there"
		}
	}
	if os.Getpid() > 100 { // the machine's
		return
	}
	names := map[string]bool{}
	others, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range others {
		if name != "/proc/1/comm" {
			names[strings.TrimSpace(read(name))] = true
		}
	}
	f["processes"] = strings.Join(slices.Sorted(maps.Keys(names)), " ")
}

func setns(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if flag == unix.CLONE_NEWNS {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	return unix.Setns(fd, flag)
}

// mounting tries to mount, and to undo what a runtime has mounted, in a mount
// namespace of its own where it may have one.
func (f facts) mounting() {
	onThread(func() error {
		unix.Unshare(unix.CLONE_NEWNS)
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		os.Mkdir("/dev/probe-dir", 0o755)
		defer os.Remove("/dev/probe-dir")
		f.errno("mount tmpfs", unix.Mount("tmpfs", "/dev/probe-dir", "tmpfs", 0, ""))
		f.errno("mount proc", unix.Mount("proc", "/dev/probe-dir", "proc", 0, ""))
		f.errno("mount sysfs", unix.Mount("sysfs", "/dev/probe-dir", "sysfs", 0, ""))
		f.errno("mount bind", unix.Mount("/proc", "/dev/probe-dir", "", unix.MS_BIND, ""))
		f.errno("mount remount", unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT, ""))
		f.errno("unmount mask", unix.Unmount("/proc/keys", unix.MNT_DETACH))
		_, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		f.errno("fsopen", err)
		_, err = unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		f.errno("open_tree", err)
		return nil
	})
}

// typeChar puts a character into the terminal's input.
func typeChar() error {
	c := byte('\n')
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
	return errnoError(errno)
}

func trace() error {
	child := exec.Command("/proc/self/exe", "sleep")
	if err := child.Start(); err != nil {
		return err
	}
	defer child.Wait()
	defer child.Process.Kill()
	return onThread(func() error { return unix.PtraceSeize(child.Process.Pid) })
}

func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return errnoError(errno)
}

func errnoError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// clone forks into a new namespace; the child ends at once.
func clone(flag uintptr) error {
	pid, errno := forkAndEnd(flag)
	if errno != 0 {
		return errno
	}
	_, err := unix.Wait4(pid, nil, 0, nil)
	return err
}

//go:norace
//go:nosplit
func forkAndEnd(flag uintptr) (int, unix.Errno) {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flag|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	for pid == 0 && errno == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return int(pid), errno
}
