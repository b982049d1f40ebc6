package stage2

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is the last part of stage 2 as a list of system calls: everything
// that changes what the process may do, and execve. A list, because an exec
// carries it out in a fork of a Go program, where nothing of Go works any
// more; and because a test can read it.
type program struct {
	path  string // of the executable
	steps []step
	undo  []step // carried out when one of the steps has failed
	keep  []any  // what the steps' addresses point to
}

// step is one system call.
type step struct {
	name string
	nr   uintptr
	args [6]uintptr
	// optional steps may fail.
	optional bool
}

func (pr *program) add(name string, nr uintptr, args ...uintptr) *step {
	pr.steps = append(pr.steps, newStep(name, nr, args...))
	return &pr.steps[len(pr.steps)-1]
}

func newStep(name string, nr uintptr, args ...uintptr) step {
	s := step{name: name, nr: nr}
	copy(s.args[:], args)
	return s
}

// addr is the address of *v, which stays alive and in place as long as pr.
func addr[T any](pr *program, v *T) uintptr {
	pr.keep = append(pr.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// strings is the address of a NULL-terminated array of C strings.
func (pr *program) strings(list []string) (uintptr, error) {
	array, err := syscall.SlicePtrFromStrings(list)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", list, err)
	}
	pr.keep = append(pr.keep, array)
	return uintptr(unsafe.Pointer(&array[0])), nil
}

// limitProcesses limits how many processes this one's cgroup may have, through
// its pids.max.
//
// A Go program has several threads, and dies when it wants one more that it may
// not have. So the limit is a step, after which nothing of Go runs: the process
// has one P, which this thread holds and, in steps, can't lose, and to start a
// thread the runtime must have a P for it. (Blocking system calls lose it, as
// would a preempting signal, which the agent has switched off: see launch.)
// execve leaves one thread, as many as the limit counts. Where there is none, Go
// goes on to tell the reason, without the limit.
func (pr *program) limitProcesses(fd int, limit string) {
	write := func(name, value string) step {
		text := []byte(value)
		return newStep(name, unix.SYS_WRITE, uintptr(fd), addr(pr, unsafe.SliceData(text)), uintptr(len(text)))
	}
	pr.steps = append(pr.steps, write("limit processes to "+limit, limit))
	pr.undo = append(pr.undo, write("take the limit of processes back", "max"))
}

func (pr *program) controllingTerminal() {
	pr.add("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
}

// finish adds the steps from the limits to execve. Their order matters:
// seccomp needs CAP_SYS_ADMIN unless no-new-privileges is set, the bounding set
// CAP_SETPCAP, and the change of user takes both.
func (pr *program) finish(p *Process) error {
	pr.add("join session keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).optional = true
	pr.add("set umask", unix.SYS_UMASK, uintptr(p.Umask))
	for _, l := range p.Rlimits {
		limit := &unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		pr.add(fmt.Sprintf("set limit %d", l.Resource), unix.SYS_PRLIMIT64, 0, uintptr(l.Resource), addr(pr, limit), 0)
	}
	if !p.NoNewPrivs {
		pr.seccomp(p)
	}
	for c := range p.LastCap + 1 {
		if p.Bounding&(1<<c) == 0 {
			pr.add(fmt.Sprintf("drop capability %d", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	pr.user(p)
	pr.capabilities(p)
	if p.NoNewPrivs {
		pr.add("set no-new-privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		pr.seccomp(p)
	}
	return pr.exec(p)
}

func (pr *program) seccomp(p *Process) {
	if len(p.Seccomp) == 0 {
		return
	}
	filter := &unix.SockFprog{
		Len:    uint16(len(p.Seccomp) / unix.SizeofSockFilter),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Seccomp[0])),
	}
	pr.keep = append(pr.keep, p.Seccomp)
	pr.add("install seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.SeccompFlags), addr(pr, filter))
}

func (pr *program) user(p *Process) {
	pr.add("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	groups := append([]uint32{}, p.Groups...)
	pr.add("set groups", unix.SYS_SETGROUPS, uintptr(len(groups)), addr(pr, unsafe.SliceData(append(groups, 0))))
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	pr.add("set group", unix.SYS_SETRESGID, gid, gid, gid)
	pr.add("set user", unix.SYS_SETRESUID, uid, uid, uid)
}

func (pr *program) capabilities(p *Process) {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	for i := range data {
		shift := 32 * i
		data[i].Effective = uint32(p.Effective >> shift)
		data[i].Permitted = uint32(p.Permitted >> shift)
		data[i].Inheritable = uint32(p.Inheritable >> shift)
	}
	pr.add("set capabilities", unix.SYS_CAPSET, addr(pr, header), addr(pr, data))
	pr.add("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := range p.LastCap + 1 {
		if p.Ambient&(1<<c) != 0 {
			pr.add(fmt.Sprintf("raise ambient capability %d", c), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0)
		}
	}
}

// exec adds execve: of the program, or of the small init with the program as
// its argument.
func (pr *program) exec(p *Process) error {
	args := p.Args
	if p.InitFD != 0 {
		args = append([]string{InitName, pr.path}, p.Args...)
	}
	argv, err := pr.strings(args)
	if err != nil {
		return err
	}
	envv, err := pr.strings(p.Env)
	if err != nil {
		return err
	}
	mask := new([8]byte) // no signal is blocked
	pr.add("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, addr(pr, mask), 0, 8)
	if p.InitFD != 0 {
		empty := new([1]byte)
		pr.add("exec "+InitName, unix.SYS_EXECVEAT, uintptr(p.InitFD), addr(pr, empty), argv, envv, unix.AT_EMPTY_PATH)
		return nil
	}
	name, err := syscall.BytePtrFromString(pr.path)
	if err != nil {
		return err
	}
	pr.add("exec "+pr.path, unix.SYS_EXECVE, addr(pr, name), argv, envv)
	return nil
}

// run carries the program out in this thread. It returns only when it failed.
func (pr *program) run() error {
	i, errno := runSteps(pr.steps)
	runSteps(pr.undo)
	runtime.KeepAlive(pr)
	return pr.failed(i, errno)
}

// failed is the error of step i.
func (pr *program) failed(i int, errno syscall.Errno) error {
	err := fmt.Errorf("%s: %w", pr.steps[i].name, errno)
	if i == len(pr.steps)-1 {
		return &execError{class(errno), err}
	}
	return err
}

// runSteps may run in a fork, or under a limit of one process: it must neither
// allocate, nor grow the stack, nor meet the scheduler or the garbage collector.
//
//go:norace
//go:nosplit
func runSteps(steps []step) (int, syscall.Errno) {
	for i := range steps {
		s := &steps[i]
		_, _, errno := syscall.RawSyscall6(s.nr, s.args[0], s.args[1], s.args[2], s.args[3], s.args[4], s.args[5])
		if errno != 0 && !s.optional {
			return i, errno
		}
	}
	return len(steps) - 1, 0
}

func setgroups(n int, list *uint32) {
	unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(list)), 0)
}
