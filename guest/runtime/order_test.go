package runtime

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// steps are what strace shows of a container's start, from clone on: every step
// in DESIGN's order, and between the last ones nothing else that counts.
var (
	setUp = []string{
		`execve\(.*\["sampan-stage2"`, `prctl\(PR_SET_DUMPABLE, SUID_DUMP_DISABLE`, `recvmsg\(`,
		`move_mount\(`, `pivot_root\(`, `umount2\("\.", MNT_DETACH`, `move_mount\(`, `sethostname\("box"`,
		`sendmsg\(`, `recvmsg\(`, `keyctl\(`,
	}
	joins     = []string{`setns\(.*CLONE_NEWCGROUP`, `close_range\(4,`, `setsid\(`}
	unlimited = []string{`keyctl\(`, `umask\(022`, `prlimit64\(`}
	filtered  = []string{`seccomp\(SECCOMP_SET_MODE_FILTER`}
	rights    = []string{
		`prctl\(PR_CAPBSET_DROP`, `prctl\(PR_SET_KEEPCAPS`, `setgroups\(`, `setresgid\(`, `setresuid\(`,
		`capset\(`, `prctl\(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL`,
	}
	noNewPrivs = []string{`prctl\(PR_SET_NO_NEW_PRIVS, 1`}
	last       = []string{`rt_sigprocmask\(SIG_SETMASK, \[\]`, `execve\("/bin/true"`}
)

// TestContainerOrder watches PID 1 and what it starts with strace.
func TestContainerOrder(t *testing.T) {
	r := newRuntime(t)
	for _, nnp := range []bool{false, true} {
		order := slices.Concat(unlimited, filtered, rights, last)
		if nnp {
			order = slices.Concat(unlimited, rights, noNewPrivs, filtered, last)
		}
		spec := dockerSpec(t, "true")
		spec.Process.NoNewPrivileges = nnp
		trace := straced(t, func() {
			if _, code := run(t, r, config(t, spec)); code != 0 {
				t.Errorf("code %d", code)
			}
		})
		lines := trace.of(t, `pivot_root\(`)
		inOrder(t, lines, setUp)
		exactly(t, lines, `keyctl\(`, order)

		long := dockerSpec(t, "sleep", "100")
		long.Process.NoNewPrivileges = nnp
		c := start(t, r, long, nil)
		trace = straced(t, func() { execIn(t, c, long, "true") })
		exactly(t, trace.of(t, `execve\("/bin/true"`), `setns\(.*CLONE_NEWCGROUP`, slices.Concat(joins, order))
	}
}

// trace is the lines of strace: a process's number and a call each.
type trace []string

// of returns the calls of the process that made one like that.
func (tr trace) of(t *testing.T, call string) []string {
	t.Helper()
	i := slices.IndexFunc(tr, regexp.MustCompile(call).MatchString)
	if i < 0 {
		t.Fatalf("nobody calls %s:\n%s", call, strings.Join(tr, "\n"))
	}
	pid, _, _ := strings.Cut(tr[i], " ")
	var lines []string
	for _, line := range tr {
		if rest, ok := strings.CutPrefix(line, pid+" "); ok {
			lines = append(lines, strings.TrimSpace(rest))
		}
	}
	return lines
}

// inOrder wants calls in this order, whatever is between them.
func inOrder(t *testing.T, lines, want []string) {
	t.Helper()
	rest := lines
	for _, w := range want {
		i := slices.IndexFunc(rest, regexp.MustCompile(w).MatchString)
		if i < 0 {
			t.Fatalf("no %s in its place in\n%s", w, strings.Join(lines, "\n"))
		}
		rest = rest[i+1:]
	}
}

// exactly wants these calls, each once or repeated, and no others from first
// on.
func exactly(t *testing.T, lines []string, first string, want []string) {
	t.Helper()
	i := slices.IndexFunc(lines, regexp.MustCompile(first).MatchString)
	if i < 0 {
		t.Fatalf("no %s in\n%s", first, strings.Join(lines, "\n"))
	}
	lines = lines[i:]
	at := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "<...") || strings.HasPrefix(line, "+++") || strings.HasPrefix(line, "---") {
			continue
		}
		if at > 0 && regexp.MustCompile(want[at-1]).MatchString(line) {
			continue
		}
		if at == len(want) {
			return // the program's own
		}
		if !regexp.MustCompile(want[at]).MatchString(line) {
			t.Fatalf("%s instead of %s in\n%s", line, want[at], strings.Join(lines, "\n"))
		}
		at++
	}
	if at < len(want) {
		t.Errorf("no %s in\n%s", want[at], strings.Join(lines, "\n"))
	}
}

// straced runs f while strace looks at PID 1 and what it starts.
func straced(t *testing.T, f func()) trace {
	t.Helper()
	const out = "/tmp/trace"
	calls := "execve,prctl,recvmsg,sendmsg,move_mount,pivot_root,umount2,sethostname,keyctl,umask,prlimit64,seccomp,setgroups,setresgid,setresuid,capset,rt_sigprocmask,setns,setsid,close_range"
	cmd := exec.Command("/strace/ld-linux-x86-64.so.2", "--library-path", "/strace", "/strace/strace",
		"-f", "-p", "1", "-o", out, "-e", "trace="+calls)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	cmd.Stderr = pw
	_, err = kids.Start(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	pw.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer kids.Done(cmd.Process.Pid)
	if err := pr.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(pr)
	for said.Scan() && !strings.Contains(said.Text(), "attached") {
	}
	if said.Err() != nil || !strings.Contains(said.Text(), "attached") {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("strace isn't there: %v, %q", said.Err(), said.Text())
	}
	f()
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // its state says that it was interrupted
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}
