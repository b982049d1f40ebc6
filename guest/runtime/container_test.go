package runtime

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var guestRun = flag.String("guest.run", "TestContainer", "which tests TestGuest runs in the guest")

var guestStages = flag.String("guest.stages", "", "executables to measure as stage 2, comma-separated")

var dockerCaps = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW
CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE`)

// dockerSpec is what Docker's engine makes of "docker run IMAGE args".
func dockerSpec(t *testing.T, args ...string) *specs.Spec {
	t.Helper()
	spec := &specs.Spec{
		Hostname: "box",
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/nothing"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Sysctl:    map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		},
	}
	var err error
	if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

var counter atomic.Int32

func newRuntime(t *testing.T) *Runtime {
	t.Helper()
	inGuest(t)
	r, err := New(Options{Children: &kids, Stage2: "/proc/self/exe", Cgroup: newCgroupDir(t), Mounts: []string{"/tmp"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// newCgroupDir is a place for the cgroups of one test, removed with it: that
// fails when one is left.
func newCgroupDir(t *testing.T) string {
	t.Helper()
	dir := fmt.Sprintf("/sys/fs/cgroup/sampan/test%d", counter.Add(1))
	if err := errors.Join(os.Mkdir(dir, 0o755), delegate(dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	return dir
}

// config is a container of the spec, over a root of its own.
func config(t *testing.T, spec *specs.Spec) Config {
	t.Helper()
	id := fmt.Sprintf("c%d", counter.Add(1))
	rootfs := filepath.Join("/tmp", id)
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/tmp/image", rootfs, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(rootfs, unix.MNT_DETACH) })
	return Config{ID: id, Spec: spec, Rootfs: rootfs}
}

// output collects what a process writes to a pipe.
type output struct {
	w    *os.File
	text chan string
}

func newOutput(t *testing.T) *output {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{w, make(chan string, 1)}
	go func() {
		defer r.Close()
		text, _ := io.ReadAll(r)
		o.text <- string(text)
	}()
	return o
}

// run runs a container to its end.
func run(t *testing.T, r *Runtime, cfg Config) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	o := newOutput(t)
	c, err := r.Create(ctx, cfg, Stdio{Stdout: o.w, Stderr: o.w})
	o.w.Close()
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	defer c.Destroy(ctx)
	if err := c.Process().Start(); err != nil {
		t.Fatalf("start: %v", err)
	}
	status, err := c.Process().Wait(ctx)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return <-o.text, status.Code
}

func TestContainerRun(t *testing.T) {
	r := newRuntime(t)
	script := `id; hostname; cat /proc/self/status | grep -E '^(Cap|NoNew|Seccomp:|Groups)'; ls /dev; cat /proc/self/cgroup; cat /proc/keys; mount; readlink /proc/self/ns/pid; pwd; env; exit 3`
	out, code := run(t, r, config(t, dockerSpec(t, "sh", "-c", script)))
	t.Log(out)
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	for _, want := range []string{
		"uid=0(root) gid=0(root) groups=0(root),10(wheel)\n", "\nbox\n",
		"CapInh:\t0000000000000000\n", "CapPrm:\t00000000a80425fb\n", "CapEff:\t00000000a80425fb\n",
		"CapBnd:\t00000000a80425fb\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t0\n", "Seccomp:\t2\n",
		"\n0::/\n", "sysfs on /sys type sysfs (ro,", "cgroup on /sys/fs/cgroup type cgroup2 (ro,", "HOME=/root\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
}

func TestContainerSignal(t *testing.T) {
	r := newRuntime(t)
	if _, code := run(t, r, config(t, dockerSpec(t, "sh", "-c", "kill -9 $$; exit 7"))); code != 7 {
		t.Errorf("PID 1 killed itself: code %d, want 7", code)
	}
}

func TestContainerStartErrors(t *testing.T) {
	r := newRuntime(t)
	for _, tt := range []struct {
		arg, want string
		class     error
	}{
		{"foo", `exec: "foo": executable file not found in $PATH`, ErrNotFound},
		{"/foo", `exec: "/foo": stat /foo: no such file or directory`, ErrNotFound},
		{"/etc", `exec: "/etc": is a directory`, ErrNotExecutable},
		{"/bin/plain", `exec: "/bin/plain": permission denied`, ErrNotExecutable},
		{"/bin/noformat", `exec /bin/noformat: exec format error`, ErrNotExecutable},
	} {
		c, err := r.Create(t.Context(), config(t, dockerSpec(t, tt.arg)), Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Process().Start()
		if err == nil || err.Error() != tt.want || !errors.Is(err, tt.class) {
			t.Errorf("%s: %v, want %s (%v)", tt.arg, err, tt.want, tt.class)
		}
		if err := c.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
	spec := dockerSpec(t, "true")
	spec.Process.User.Username = "foo"
	_, err := r.Create(t.Context(), config(t, spec), Stdio{})
	if err == nil || !strings.Contains(err.Error(), "unable to find user foo: no matching entries in passwd file") {
		t.Errorf("unknown user: %v", err)
	}
	// What fails in the container itself, before its program is there.
	spec = dockerSpec(t, "true")
	spec.Mounts = append(spec.Mounts, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/etc/passwd/below"})
	_, err = r.Create(t.Context(), config(t, spec), Stdio{})
	if err == nil || !strings.Contains(err.Error(), "mount /etc/passwd/below: ") {
		t.Errorf("a mount point below a file: %v", err)
	}
}

func TestContainerUser(t *testing.T) {
	r := newRuntime(t)
	for _, nnp := range []bool{false, true} {
		spec := dockerSpec(t, "sh", "-c", "id; pwd; grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status; mknod /tmp/x b 8 0; echo $?")
		spec.Process.User.Username = "ann"
		spec.Process.Cwd = "/made/here"
		spec.Process.NoNewPrivileges = nnp
		out, _ := run(t, r, config(t, spec))
		for _, want := range []string{"uid=1000(ann) gid=1000(ann) groups=10(wheel),1000(ann)\n", "/made/here\n", "CapEff:\t0000000000000000\n", "Seccomp:\t2\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no_new_privs %v: output lacks %q:\n%s", nnp, want, out)
			}
		}
	}
}

func TestContainerDevices(t *testing.T) {
	r := newRuntime(t)
	out, _ := run(t, r, config(t, dockerSpec(t, "sh", "-c", "mknod /dev/kmem c 1 1 && echo made; head -c1 /dev/kmem; head -c4 /dev/zero | ls -l /proc/self/fd/0; echo x >/dev/null && echo ok")))
	if !strings.Contains(out, "made\n") || !strings.Contains(out, "Operation not permitted") || !strings.Contains(out, "ok\n") {
		t.Errorf("devices:\n%s", out)
	}
}

func start(t *testing.T, r *Runtime, spec *specs.Spec, opt func(*Config)) *Container {
	t.Helper()
	cfg := config(t, spec)
	if opt != nil {
		opt(&cfg)
	}
	c, err := r.Create(t.Context(), cfg, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := c.Process().Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestContainerExec(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "sleep", "100")
	c := start(t, r, spec, nil)
	o := newOutput(t)
	p := *spec.Process
	p.Args = []string{"sh", "-c", "echo $$; hostname; ps; cat /proc/self/cgroup; grep -E '^(Cap|Seccomp:|SigBlk|PPid)' /proc/self/status; readlink /proc/self/ns/* /proc/1/ns/*; ls -l /proc/self/fd; exit 5"}
	e, err := c.Exec(t.Context(), &p, Stdio{Stdout: o.w, Stderr: o.w})
	o.w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	status, err := e.Wait(t.Context())
	out := <-o.text
	t.Log(out)
	if err != nil || status.Code != 5 {
		t.Errorf("wait: %v, %v; want code 5", status, err)
	}
	for _, want := range []string{"box\n", "0::/\n", "CapEff:\t00000000a80425fb\n", "Seccomp:\t2\n", "SigBlk:\t0000000000000000\n", "sleep 100"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if strings.Contains(out, "sampan-stage2") {
		t.Error("stage 2 shows up in the container")
	}
	p.Args, p.Cwd = []string{"true"}, "/nope"
	want := `chdir to cwd ("/nope") set in config.json failed: no such file or directory`
	if _, err := c.Exec(t.Context(), &p, Stdio{}); err == nil || err.Error() != want || !errors.Is(err, ErrNotFound) {
		t.Errorf("exec in /nope: %v, want %s", err, want)
	}
	p.Args, p.Cwd = []string{"foo"}, "/"
	if e, err = c.Exec(t.Context(), &p, Stdio{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); !errors.Is(err, ErrNotFound) {
		t.Errorf("exec foo: %v", err)
	}
	p.Args = []string{"/bin/noformat"}
	if e, err = c.Exec(t.Context(), &p, Stdio{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(); !errors.Is(err, ErrNotExecutable) {
		t.Errorf("exec /bin/noformat: %v", err)
	}
}

func TestContainerTerminal(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "sh", "-c", "tty; stty size; echo hi >/dev/console; ls -l /dev/console")
	spec.Process.Terminal = true
	c, err := r.Create(t.Context(), config(t, spec), Stdio{Rows: 33, Columns: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Destroy(t.Context())
	var out bytes.Buffer
	done := make(chan bool)
	go func() { io.Copy(&out, c.Process().Console); close(done) }() // ends with EIO
	if err := c.Process().Start(); err != nil {
		t.Fatal(err)
	}
	<-done
	for _, want := range []string{"/dev/pts/0\r\n", "33 77\r\n", "hi\r\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q: %q", want, out.String())
		}
	}
}

func TestContainerInit(t *testing.T) {
	r := newRuntime(t)
	c := start(t, r, dockerSpec(t, "sh", "-c", "sleep 100; exit 9"), func(c *Config) { c.Init = true })
	if err := c.SignalAll(int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Process().Wait(t.Context()); err != nil || s.Code != 137 {
		t.Errorf("killed: %v, %v", s, err)
	}
	cfg := config(t, dockerSpec(t, "sh", "-c", "echo $$; exit 9"))
	cfg.Init = true
	if out, code := run(t, r, cfg); code != 9 || strings.HasPrefix(out, "1\n") {
		t.Errorf("code %d, output %q; want code 9 of a process that isn't PID 1", code, out)
	}
	// It forwards signals, reaps orphans, and ends as the command did.
	out, code := run(t, r, initConfig(t, 0, "sh", "-c", "trap 'echo got it; exit 3' USR1; (sleep 0.1 & ) ; grep Threads /proc/1/status; sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z'; kill -USR1 1; while :; do sleep 0.1; done"))
	if code != 3 || out != "Threads:\t1\n0\ngot it\n" {
		t.Errorf("code %d, output %q", code, out)
	}
	if out, code := run(t, r, initConfig(t, 0, "sh", "-c", "kill -TERM $$")); code != 143 {
		t.Errorf("command ended by SIGTERM: code %d, %q", code, out)
	}
	if out, code := run(t, r, initConfig(t, 0, "/bin/noformat")); code != 126 || out != "sampan-init: exec /bin/noformat: exec format error\n" {
		t.Errorf("a program that can't be executed: code %d, %q", code, out)
	}
	cfg = initConfig(t, 0, "sleep", "1000")
	cfg.Spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"rt_sigtimedwait"}, Action: specs.ActErrno}},
	}
	if out, code := run(t, r, cfg); code != 1 || out != "sampan-init: wait for signals: operation not permitted\n" {
		t.Errorf("a filter that refuses to wait for signals: code %d, %q", code, out)
	}
	// It is one process of those that the limit allows.
	if out, code := run(t, r, initConfig(t, 2, "echo", "hi")); code != 0 || out != "hi\n" {
		t.Errorf("limit of 2: code %d, %q", code, out)
	}
	if out, code := run(t, r, initConfig(t, 2, "sh", "-c", "(true); echo forked")); code == 0 || !strings.Contains(out, "can't fork") {
		t.Errorf("limit of 2, a third: code %d, %q", code, out)
	}
	if out, code := run(t, r, initConfig(t, 1, "true")); code != 1 || out != "sampan-init: fork: resource temporarily unavailable\n" {
		t.Errorf("limit of 1: code %d, %q", code, out)
	}
}

// initConfig is of a container with the small init and a limit of processes.
func initConfig(t *testing.T, limit int64, args ...string) Config {
	spec := dockerSpec(t, args...)
	if limit > 0 {
		spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	}
	cfg := config(t, spec)
	cfg.Init = true
	return cfg
}

func TestContainerLimits(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu.weight")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](16 << 20)}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](1)}
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: ptr[int64](50000), Period: ptr[uint64](100000), Shares: ptr[uint64](1024)}
	out, code := run(t, r, config(t, spec))
	if out != "16777216\n1\n50000 100000\n100\n" || code != 0 {
		t.Errorf("code %d, limits %q", code, out)
	}
}

// TestContainerOneProcess: a limit of one process is enough for one, however
// busy the processors are, and for no more.
func TestContainerOneProcess(t *testing.T) {
	r := newRuntime(t)
	for range 2 {
		start(t, r, dockerSpec(t, "sh", "-c", "while :; do :; done"), nil)
	}
	one := func(args ...string) Config {
		spec := dockerSpec(t, args...)
		spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](1)}
		return config(t, spec)
	}
	for i := range *guestExecs / 20 {
		if out, code := run(t, r, one("cat", "/sys/fs/cgroup/pids.max")); out != "1\n" || code != 0 {
			t.Fatalf("run %d ended with %d: %q", i, code, out)
		}
	}
	if out, code := run(t, r, one("sh", "-c", "(true); echo forked")); !strings.Contains(out, "can't fork") || code == 0 {
		t.Errorf("two processes: code %d, %q", code, out)
	}
	for range 2 {
		c, err := r.Create(t.Context(), one("/bin/noformat"), Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Process().Start(); !errors.Is(err, ErrNotExecutable) {
			t.Errorf("a program that can't be executed: %v", err)
		}
		if err := c.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestContainerTimes measures, with this binary as stage 2 and with those that
// -guest.stages has brought along.
func TestContainerTimes(t *testing.T) {
	inGuest(t)
	for _, exe := range append([]string{"/proc/self/exe"}, extraStages()...) {
		r, err := New(Options{Children: &kids, Stage2: exe, Cgroup: newCgroupDir(t), Mounts: []string{"/tmp"}})
		if err != nil {
			t.Fatal(err)
		}
		measure(t, r, exe)
	}
}

// extraStages are executables that TestGuest has put in for comparison.
func extraStages() []string {
	list, _ := filepath.Glob("/stages/*")
	return list
}

func measure(t *testing.T, r *Runtime, name string) {
	const n = 20
	begin := time.Now()
	for range n {
		run(t, r, config(t, dockerSpec(t, "true")))
	}
	each := time.Since(begin) / n
	spec := dockerSpec(t, "sleep", "100")
	c := start(t, r, spec, nil)
	p := *spec.Process
	p.Args = []string{"true"}
	begin = time.Now()
	for range n {
		e, err := c.Exec(t.Context(), &p, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("stage 2 %q: create, run and wait for true %v each; exec of true %v each", name, each, time.Since(begin)/n)
}

// TestContainerSteps tells how the time of a run divides up.
func TestContainerSteps(t *testing.T) {
	r := newRuntime(t)
	var create, begin, wait, destroy time.Duration
	const n = 20
	for range n {
		cfg := config(t, dockerSpec(t, "true"))
		t0 := time.Now()
		c, err := r.Create(t.Context(), cfg, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		t1 := time.Now()
		if err := c.Process().Start(); err != nil {
			t.Fatal(err)
		}
		t2 := time.Now()
		if _, err := c.Process().Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		t3 := time.Now()
		if err := c.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		create, begin, wait, destroy = create+t1.Sub(t0), begin+t2.Sub(t1), wait+t3.Sub(t2), destroy+time.Since(t3)
	}
	t.Logf("create %v, start %v, wait %v, destroy %v", create/n, begin/n, wait/n, destroy/n)
}

// TestContainerExecTerminal: an exec's terminal is the container's, belongs to
// the user, and hangs up with the process.
func TestContainerExecTerminal(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "sleep", "100")
	c := start(t, r, spec, nil)
	p := *spec.Process
	p.Terminal, p.User.Username = true, "ann"
	p.Args = []string{"sh", "-c", "tty; stty size; stat -c %U $(tty); id -u; echo hey >/dev/tty"}
	e, err := c.Exec(t.Context(), &p, Stdio{Rows: 20, Columns: 50})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Resize(21, 51); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done := make(chan bool)
	go func() { io.Copy(&out, e.Console); close(done) }()
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	<-done
	if want := "/dev/pts/0\r\n21 51\r\nann\r\n1000\r\nhey\r\n"; out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
	if err := e.Console.Close(); err != nil {
		t.Error(err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s.Code != 0 {
		t.Errorf("ended with %v, %v", s, err)
	}
}
