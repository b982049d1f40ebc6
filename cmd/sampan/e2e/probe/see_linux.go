package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var numbered = regexp.MustCompile(`:\[\d+\]$`)

// descriptors tells what is open from the start.
func (f facts) descriptors() {
	for fd := range 64 {
		target, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue
		}
		if fd > 2 && (strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/sys/fs/cgroup/")) {
			continue // Go's poller, and where it looks for how many threads it may run
		}
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		flags &^= unix.O_NOFOLLOW | unix.O_CLOEXEC | 0x8000 // O_LARGEFILE: of no consequence once it is open
		f[fmt.Sprint("fd ", fd)] = fmt.Sprintf("%s %#x", numbered.ReplaceAllString(target, ""), flags)
	}
}

// counters are lines of status that tell nothing of the sandbox.
var counters = regexp.MustCompile(`^(Name|State|Tgid|Ngid|Pid|PPid|TracerPid|FDSize|NS.*|Vm.*|Rss.*|HugetlbPages|CoreDumping|Threads|SigQ|SigPnd|ShdPnd|SigCgt|.*ctxt_switches|Kthread)$`)

// initial are the machine's namespaces (include/linux/proc_ns.h).
var initial = map[string]string{"ipc": "4026531839", "uts": "4026531838", "user": "4026531837", "pid": "4026531836", "cgroup": "4026531835", "time": "4026531834"}

func (f facts) process() {
	for line := range strings.Lines(read("/proc/self/status")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !counters.MatchString(name) {
			f["status "+name] = strings.TrimSpace(value)
		}
	}
	for kind, number := range initial {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		f["namespace "+kind] = "own"
		if err != nil || strings.Contains(link, number) {
			f["namespace "+kind] = "machine's"
		}
	}
	for _, name := range []string{"uid_map", "gid_map", "projid_map", "setgroups", "oom_score_adj", "loginuid", "sessionid", "personality", "coredump_filter", "cgroup", "attr/current"} {
		f["self "+name] = strings.Join(strings.Fields(read("/proc/self/"+name)), " ")
	}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		f["env "+name] = value
	}
	host, _ := os.Hostname()
	f["hostname"] = host
	f["hostname file"] = strings.TrimSpace(read("/etc/hostname"))
	sid, _ := unix.Getsid(0)
	f["process"] = fmt.Sprintf("pid %d parent %d group %d session %d", os.Getpid(), os.Getppid(), unix.Getpgrp(), sid)
	if os.Getpid() > 100 { // the machine's
		f["process"] = fmt.Sprintf("leader %t session leader %t", unix.Getpgrp() == os.Getpid(), sid == os.Getpid())
	}
	dir, _ := os.Getwd()
	f["directory"] = dir
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	f.errno("terminal", err)
	if t, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		f.errno("controlling terminal", err)
	} else {
		f["controlling terminal"] = "ok"
		t.Close()
	}
	f["session keyring"] = keyring()
}

// keyring describes the session's keyring: type, owner, permissions.
func keyring() string {
	s, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, unix.KEY_SPEC_SESSION_KEYRING)
	if err != nil {
		return outcome(err)
	}
	return s[:strings.LastIndex(s, ";")]
}

var propagation = regexp.MustCompile(`:\d+`)

// privateOptions belong to file systems that a runtime doesn't make.
var privateOptions = []string{"overlay", "ext4", "erofs"}

func (f facts) mounts() {
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		w := strings.Fields(line)
		sep := slices.Index(w, "-")
		target, options, optional := w[4], w[5], propagation.ReplaceAllString(strings.Join(w[6:sep], ","), "")
		kind, source, super := w[sep+1], w[sep+2], w[sep+3]
		value := fmt.Sprintf("%s %s %s", kind, options, optional)
		if slices.Contains(privateOptions, kind) || strings.HasPrefix(target, "/etc/") {
			value = fmt.Sprintf("file system %s %s", options, optional)
		} else {
			value += fmt.Sprintf(" root=%s source=%s %s", w[3], strings.TrimSuffix(source, "2"), super)
		}
		name := "mount " + target
		for f[name] != "" {
			name += " again"
		}
		f[name] = value
	}
}

func (f facts) limits() {
	for n, name := range strings.Fields("cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice rtprio rttime") {
		var l unix.Rlimit
		if err := unix.Prlimit(0, n, nil, &l); err != nil {
			f.errno("limit "+name, err)
			continue
		}
		f["limit "+name] = fmt.Sprintf("%d %d", int64(l.Cur), int64(l.Max))
	}
	// Go has raised its own soft limit.
	for line := range strings.Lines(read("/proc/self/limits")) {
		if strings.HasPrefix(line, "Max open files") {
			f["limit nofile"] = strings.Fields(line)[4]
		}
	}
}

// limitFiles are a cgroup's files that a runtime sets.
var limitFiles = strings.Fields("cgroup.controllers cgroup.subtree_control cgroup.type cgroup.max.depth cgroup.max.descendants cpu.max cpu.weight cpu.idle cpuset.cpus cpuset.mems cpuset.cpus.effective memory.max memory.high memory.low memory.min memory.swap.max memory.oom.group pids.max io.max io.weight")

func (f facts) cgroup() {
	const dir = "/sys/fs/cgroup"
	names, err := os.ReadDir(dir)
	f.errno("cgroup list", err)
	for _, n := range names {
		f["cgroup file "+n.Name()] = "there"
	}
	for _, n := range limitFiles {
		f["cgroup "+n] = strings.TrimSpace(read(filepath.Join(dir, n)))
	}
	for _, n := range []string{"cgroup.procs", "memory.max", "pids.max", "cgroup.freeze"} {
		f.errno("cgroup write "+n, open(filepath.Join(dir, n), unix.O_WRONLY))
	}
	err = os.Mkdir(dir+"/probe", 0o755)
	f.errno("cgroup mkdir", err)
	if err == nil {
		os.Remove(dir + "/probe")
	}
}

func (f facts) devices() {
	filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(path, &st) != nil || strings.HasPrefix(path, "/dev/pts/") {
			return nil
		}
		value := fmt.Sprintf("%o %d:%d %d:%d", st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		if link, err := os.Readlink(path); err == nil {
			value += " " + link
		}
		f["dev "+path] = value
		// Opening a console makes devices for it, and a watchdog must be fed.
		isDevice := st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFBLK
		if isDevice && !strings.HasPrefix(path, "/dev/tty") && !strings.HasPrefix(path, "/dev/vcs") && !strings.HasPrefix(path, "/dev/watchdog") {
			f.errno("dev open "+path, open(path, unix.O_RDONLY))
		}
		return nil
	})
	for _, d := range []struct {
		kind         uint32
		major, minor uint32
	}{
		{unix.S_IFCHR, 1, 1}, {unix.S_IFCHR, 1, 2}, {unix.S_IFCHR, 1, 3}, {unix.S_IFCHR, 1, 4}, {unix.S_IFCHR, 1, 5}, {unix.S_IFCHR, 1, 7},
		{unix.S_IFCHR, 1, 8}, {unix.S_IFCHR, 1, 9}, {unix.S_IFCHR, 1, 11}, {unix.S_IFCHR, 4, 0}, {unix.S_IFCHR, 4, 64},
		{unix.S_IFCHR, 5, 0}, {unix.S_IFCHR, 5, 1}, {unix.S_IFCHR, 5, 2}, {unix.S_IFCHR, 7, 0}, {unix.S_IFCHR, 10, 144},
		{unix.S_IFCHR, 10, 183}, {unix.S_IFCHR, 10, 200}, {unix.S_IFCHR, 10, 229}, {unix.S_IFCHR, 10, 231}, {unix.S_IFCHR, 10, 232},
		{unix.S_IFCHR, 10, 235}, {unix.S_IFCHR, 10, 237}, {unix.S_IFCHR, 136, 0}, {unix.S_IFCHR, 202, 0}, {unix.S_IFCHR, 249, 0},
		{unix.S_IFBLK, 7, 0}, {unix.S_IFBLK, 8, 0}, {unix.S_IFBLK, 253, 0}, {unix.S_IFBLK, 254, 0}, {unix.S_IFBLK, 259, 0},
	} {
		name := fmt.Sprintf("device %c %d:%d", map[uint32]byte{unix.S_IFCHR: 'c', unix.S_IFBLK: 'b'}[d.kind], d.major, d.minor)
		const node = "/dev/probe-node"
		err := unix.Mknod(node, d.kind|0o666, int(unix.Mkdev(d.major, d.minor)))
		f.errno(name+" mknod", err)
		if err == nil {
			f.errno(name+" read", open(node, unix.O_RDONLY))
			f.errno(name+" write", open(node, unix.O_WRONLY))
			os.Remove(node)
		}
	}
}

// files tells which files of the kernel can be opened. Most can be read and not
// written; told are the others.
func (f facts) files() {
	skip := regexp.MustCompile(`^/(proc/(\d+|self|thread-self|sys/net|driver|irq/\d+/.*|fs/.*)|sys/(devices|bus|module|fs/cgroup|kernel/slab|kernel/debug|kernel/tracing|class)(/.*)?)$`)
	for _, root := range []string{"/proc", "/sys", "/sys/devices/system/cpu", "/sys/devices/virtual/powercap", "/sys/devices/virtual/dmi"} {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if path != root && skip.MatchString(path) && strings.Count(root, "/") == 1 {
				if d != nil && d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if err != nil {
				f.errno("list "+path, err)
				return nil
			}
			if d.IsDir() || d.Type()&fs.ModeSymlink != 0 {
				return nil
			}
			if err := open(path, unix.O_WRONLY); err == nil {
				f["write "+path] = "ok"
			}
			if err := open(path, unix.O_RDONLY); err != nil {
				f.errno("read "+path, err)
			}
			return nil
		})
	}
	for _, path := range []string{"/", "/proc", "/dev", "/dev/shm", "/dev/pts", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
		"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/proc/interrupts", "/proc/acpi", "/proc/scsi", "/proc/asound",
		"/sys/firmware", "/sys/devices/virtual/powercap", "/dev/mem"} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			f.errno("stat "+path, err)
			continue
		}
		f["stat "+path] = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			f["stat "+path] += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug", "/proc/kallsyms", "/proc/modules"} {
		f["content "+path] = content(path)
	}
	for _, dir := range []string{"/", "/dev", "/dev/shm", "/proc", "/sys", "/etc"} {
		name := filepath.Join(dir, "probe-file")
		err := open(name, unix.O_WRONLY|unix.O_CREAT)
		f.errno("create in "+dir, err)
		if err == nil {
			os.Remove(name)
		}
	}
	for _, path := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		f.errno("write "+path, open(path, unix.O_WRONLY))
	}
	f.sysctls()
}

// content tells whether a file shows something, and whether kernel addresses.
func content(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return outcome(err)
	}
	defer file.Close()
	buf := make([]byte, 64)
	n, err := file.Read(buf)
	switch {
	case n == 0:
		return "nothing"
	case strings.HasPrefix(string(buf[:n]), "0000000000000000 "):
		return "addresses hidden"
	case strings.HasSuffix(path, "kallsyms"):
		return "addresses"
	}
	return "something"
}

// sysctls are the values of those that belong to namespaces.
func (f facts) sysctls() {
	volatile := regexp.MustCompile(`(_random|rand|/random/|nf_conntrack_count|/uuid|/boot_id|route/min_adv_mss|stable_secret|/ns_last_pid|flush$|key$)`)
	for _, root := range []string{"/proc/sys/net", "/proc/sys/fs/mqueue", "/proc/sys/kernel"} {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || volatile.MatchString(path) {
				return nil
			}
			if root == "/proc/sys/kernel" && !regexp.MustCompile(`/(msg|shm|sem|hostname|domainname|cap_last_cap|unprivileged|dmesg|kptr|perf_event_paranoid|core_)`).MatchString(path) {
				return nil
			}
			if b, err := os.ReadFile(path); err == nil {
				f["sysctl "+strings.TrimPrefix(path, "/proc/sys/")] = strings.TrimSpace(string(b))
			}
			return nil
		})
	}
}

func open(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return outcome(err)
	}
	return string(b)
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }
