package stage2

import (
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOrder pins the order of DESIGN's decision 9, with and without
// no-new-privileges.
func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		nnp  bool
		want string
	}{
		{false, "join session keyring; set umask; set limit 7; install seccomp filter; drop capability 1; keep capabilities; set groups; set group; set user; set capabilities; clear ambient capabilities; raise ambient capability 0; unblock signals; exec /bin/x"},
		{true, "join session keyring; set umask; set limit 7; drop capability 1; keep capabilities; set groups; set group; set user; set capabilities; clear ambient capabilities; raise ambient capability 0; set no-new-privileges; install seccomp filter; unblock signals; exec /bin/x"},
	} {
		pr := &program{path: "/bin/x"}
		err := pr.finish(&Process{
			Args: []string{"x"}, Rlimits: []Rlimit{{Resource: 7}}, Seccomp: make([]byte, 8),
			LastCap: 1, Bounding: 1, Ambient: 1, NoNewPrivs: tt.nnp,
		})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range pr.steps {
			names = append(names, s.name)
		}
		if got := strings.Join(names, "; "); got != tt.want {
			t.Errorf("no-new-privileges %v:\n got %s\nwant %s", tt.nnp, got, tt.want)
		}
	}
}

// TestUndo: a limit of processes is taken back when a later step has failed.
func TestUndo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var pr program
	pr.limitProcesses(int(w.Fd()), "1")
	pr.add("fail", unix.SYS_CLOSE, ^uintptr(0))
	pr.add("never", unix.SYS_WRITE, w.Fd(), addr(&pr, new([1]byte)), 1)
	if err := pr.run(); err == nil || !strings.HasPrefix(err.Error(), "fail: ") {
		t.Errorf("error %v", err)
	}
	w.Close()
	if wrote, err := io.ReadAll(r); err != nil || string(wrote) != "1max" {
		t.Errorf("wrote %q, %v", wrote, err)
	}
}

func TestLookPath(t *testing.T) {
	if _, err := lookPath("nothing-like-this", "/bin:/usr/bin"); err != errNotInPath {
		t.Errorf("missing: %v", err)
	}
	if name, err := lookPath("sh", "/nowhere:/bin"); err != nil || name != "/bin/sh" {
		t.Errorf("sh: %q, %v", name, err)
	}
}
