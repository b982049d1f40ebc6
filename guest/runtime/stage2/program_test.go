package stage2

import (
	"strings"
	"testing"
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

func TestLookPath(t *testing.T) {
	if _, err := lookPath("nothing-like-this", "/bin:/usr/bin"); err != errNotInPath {
		t.Errorf("missing: %v", err)
	}
	if name, err := lookPath("sh", "/nowhere:/bin"); err != nil || name != "/bin/sh" {
		t.Errorf("sh: %q, %v", name, err)
	}
}
