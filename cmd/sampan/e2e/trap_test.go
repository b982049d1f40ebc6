package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A trap kills sampand at the N-th of its calls that change its home: write,
// rename, fsync and the like. The daemon is the product's, unchanged. The
// kernel stops each such call before it is carried out and tells the test
// (seccomp user notification, seccomp_unotify(2)), which lets it go on, or
// kills the process. Unlike strace's fault injection, which counts per thread,
// this counts what the whole process does.
//
//	test ── starts ──> e2e.test as "trapped": installs the filter, sends the
//	  ^                 listener back, becomes sampand
//	  └─ listener: "thread 12 is about to rename(…)" ─> "go on" or SIGKILL
type trap struct {
	home     string
	kill     int // the operation at which to kill; 0: never
	listener *os.File
	cmd      *exec.Cmd
	log      bytes.Buffer // the daemon's stderr

	mu  sync.Mutex
	ops []string // what the daemon has done, and last what it was killed at

	served, ended chan struct{}
}

// trapEnv makes the test binary the program that becomes a trapped sampand.
const trapEnv = "SAMPAN_E2E_TRAPPED"

// Descriptors of a trapped daemon.
const (
	trapFD  = 3 // socket for the listener
	readyFD = 4 // sampand's own
)

// trapped calls, with the kind of their arguments (amd64, as the whole suite).
var trappedCalls = map[int32]struct {
	name string
	// fd and path are the arguments that tell what is changed, or -1.
	fd, path int
}{
	unix.SYS_WRITE: {"write", 0, -1}, unix.SYS_PWRITE64: {"pwrite", 0, -1},
	unix.SYS_WRITEV: {"writev", 0, -1}, unix.SYS_PWRITEV: {"pwritev", 0, -1},
	unix.SYS_SENDFILE: {"sendfile", 0, -1}, unix.SYS_COPY_FILE_RANGE: {"copy_file_range", 2, -1},
	unix.SYS_FSYNC: {"fsync", 0, -1}, unix.SYS_FDATASYNC: {"fdatasync", 0, -1},
	unix.SYS_FTRUNCATE: {"ftruncate", 0, -1}, unix.SYS_FALLOCATE: {"fallocate", 0, -1},
	unix.SYS_OPENAT: {"create", -1, 1}, unix.SYS_MKDIRAT: {"mkdir", -1, 1}, unix.SYS_MKDIR: {"mkdir", -1, 0},
	unix.SYS_RENAME: {"rename", -1, 1}, unix.SYS_RENAMEAT: {"rename", -1, 3}, unix.SYS_RENAMEAT2: {"rename", -1, 3},
	unix.SYS_UNLINK: {"unlink", -1, 0}, unix.SYS_UNLINKAT: {"unlink", -1, 1}, unix.SYS_RMDIR: {"rmdir", -1, 0},
	unix.SYS_LINKAT: {"link", -1, 3}, unix.SYS_SYMLINKAT: {"symlink", -1, 2},
}

// becomeTrapped installs the filter, sends the listener to the test, and turns
// into the program that the arguments name.
func becomeTrapped(args []string) error {
	runtime.LockOSThread() // the filter is the thread's
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := trapFilter()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(trapFD, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("send listener: %w", err)
	}
	unix.Close(int(fd))
	unix.CloseOnExec(trapFD)
	return unix.Exec(args[0], args, os.Environ())
}

// trapFilter stops the trapped calls; openat only when it creates.
func trapFilter() []unix.SockFilter {
	const load, jeq, jset, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	// struct seccomp_data: nr at 0, arch at 4, args from 16.
	prog := []unix.SockFilter{
		{Code: load, K: 4},
		{Code: jeq, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: load, K: 0},
		{Code: jeq, K: unix.SYS_OPENAT, Jf: 4},
		{Code: load, K: 16 + 2*8},
		{Code: jset, K: unix.O_CREAT, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	for nr := range trappedCalls {
		if nr != unix.SYS_OPENAT {
			prog = append(prog, unix.SockFilter{Code: jeq, K: uint32(nr), Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF})
		}
	}
	return append(prog, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
}

// startTrapped starts the home's daemon and returns when it serves or has been
// killed. Whatever becomes of it, it is gone when the test ends.
func (h *home) startTrapped(t testing.TB, kill int) *trap {
	t.Helper()
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "trap")
	defer theirs.Close()
	ready, readyTheirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tr := &trap{home: h.dir, kill: kill, served: make(chan struct{}), ended: make(chan struct{})}
	tr.cmd = exec.Command(self, filepath.Join(files.bin, "sampand"), "--ready-fd", fmt.Sprint(readyFD))
	tr.cmd.Env = append(h.environ(), trapEnv+"=1")
	tr.cmd.ExtraFiles = []*os.File{theirs, readyTheirs}
	tr.cmd.Stdout, tr.cmd.Stderr = &tr.log, &tr.log
	tr.cmd.WaitDelay = 10 * time.Second
	tr.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = tr.cmd.Start()
	readyTheirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if tr.listener, err = receiveFile(pair[0]); err != nil {
		tr.cmd.Process.Kill()
		tr.cmd.Wait()
		t.Fatalf("no listener from the trapped daemon: %v\n%s", err, tr.log.Bytes())
	}
	go tr.serve()
	go func() { tr.cmd.Wait(); close(tr.ended) }()
	t.Cleanup(func() { tr.end(t) })
	ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 4096)
	n, err := ready.Read(buf)
	if said := string(buf[:n]); said != "ok\n" && (kill == 0 || said != "" || errors.Is(err, os.ErrDeadlineExceeded)) {
		t.Fatalf("the trapped daemon said %q, %v\n%s", said, err, tr.log.Bytes())
	}
	return tr
}

// receiveFile takes one descriptor from a socket.
func receiveFile(sock int) (*os.File, error) {
	unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	oob := make([]byte, unix.CmsgSpace(4))
	var n int
	err := error(unix.EINTR)
	for err == unix.EINTR { // by signals of Go's own; with a timeout the kernel does not go on by itself
		_, n, _, _, err = unix.Recvmsg(sock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors, %v", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "seccomp listener"), nil
}

// seccompNotif and seccompResp are struct seccomp_notif and seccomp_notif_resp
// (linux/seccomp.h).
type seccompNotif struct {
	id    uint64
	pid   uint32 // of the thread
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type seccompResp struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// serve answers the kernel until the daemon and its children are gone, or the
// daemon has been killed.
func (tr *trap) serve() {
	defer close(tr.served)
	defer tr.listener.Close() // calls that wait then fail, in what is ending anyway
	fd := tr.listener.Fd()
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil || poll[0].Revents&unix.POLLIN == 0 {
			return // POLLHUP: nobody has the filter any more
		}
		var n seccompNotif
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // ENOENT: that thread has ended meanwhile
		}
		if tr.note(&n) {
			tr.cmd.Process.Kill()
			return
		}
		resp := seccompResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		unix.Syscall(unix.SYS_IOCTL, fd, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp)))
	}
}

// note counts a call if it is one of the daemon's own on its home, and says
// whether it is the last.
func (tr *trap) note(n *seccompNotif) (kill bool) {
	call := trappedCalls[n.nr]
	path := ""
	if call.fd >= 0 {
		// Of children the threads are not below the daemon's own entry.
		path, _ = os.Readlink(fmt.Sprintf("/proc/%d/task/%d/fd/%d", tr.cmd.Process.Pid, n.pid, int32(n.args[call.fd])))
	} else if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", tr.cmd.Process.Pid, n.pid)); err == nil {
		path = tr.text(n.args[call.path])
	}
	rel, ok := strings.CutPrefix(path, tr.home)
	if !ok || strings.HasSuffix(strings.TrimSuffix(rel, ".1"), ".log") {
		return false // of logs nothing is promised, and their writes depend on timing
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ops = append(tr.ops, call.name+" "+rel)
	return len(tr.ops) == tr.kill
}

// text reads a string of the daemon's memory.
func (tr *trap) text(addr uint64) string {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", tr.cmd.Process.Pid))
	if err != nil {
		return ""
	}
	defer mem.Close()
	b := make([]byte, unix.PathMax)
	n, _ := mem.ReadAt(b, int64(addr)) // may end with the mapping
	s, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(s)
}

// done lists what the daemon has done so far.
func (tr *trap) done() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]string(nil), tr.ops...)
}

// killed says whether the daemon came to its last operation.
func (tr *trap) killed() bool { return tr.kill > 0 && len(tr.done()) >= tr.kill }

// end waits for a killed daemon, or ends one in order.
func (tr *trap) end(t testing.TB) {
	if !tr.killed() {
		tr.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-tr.ended:
	case <-time.After(60 * time.Second):
		t.Errorf("the trapped daemon runs 60 s after its end was asked for")
		tr.cmd.Process.Kill()
		<-tr.ended
	}
	<-tr.served
}
