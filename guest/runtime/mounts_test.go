package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestContainerMounts(t *testing.T) {
	r := newRuntime(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/hosts", []byte("127.0.0.1 me\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `cat /etc/new/hosts; echo no 2>/dev/null >/ro/x || echo ro; echo yes >/rw/y && cat /rw/y
echo no 2>/dev/null >/etc/x || echo rootro; touch /scratch/x && echo tmp; touch /sealed/x 2>/dev/null || echo sealed
cat /dangling; echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo procro; head -c1 /proc/kcore | stat -c %t /proc/kcore`
	spec := dockerSpec(t, "sh", "-c", script)
	spec.Root = &specs.Root{Readonly: true}
	if err := os.Symlink("not/there", "/tmp/image/dangling"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/tmp/image/dangling")
	defer os.RemoveAll("/tmp/image/not")
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/etc/new/hosts", Type: "bind", Source: dir + "/hosts", Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/dangling", Type: "bind", Source: dir + "/hosts", Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/ro", Type: "bind", Source: dir, Options: []string{"rbind", "ro", "rro", "rprivate"}},
		specs.Mount{Destination: "/rw", Type: "bind", Source: dir, Options: []string{"rbind", "rw", "rprivate"}},
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=1777", "nosuid"}},
		specs.Mount{Destination: "/sealed", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
	)
	out, _ := run(t, r, config(t, spec))
	if want := "127.0.0.1 me\nro\nyes\nrootro\ntmp\nsealed\n127.0.0.1 me\nprocro\n1\n"; out != want {
		t.Errorf("output %q, want %q", out, want)
	}
}

func TestContainerOOM(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "sh", "-c", "a=x; while :; do a=$a$a$a$a; done")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](16 << 20)}
	c := start(t, r, spec, nil)
	s, err := c.Process().Wait(t.Context())
	if err != nil || s.Code != 137 || !c.OOMKilled() {
		t.Errorf("ended with %v, %v, out of memory %v; want 137 and true", s, err, c.OOMKilled())
	}
}

// TestContainerMany starts containers side by side, and makes sure that nothing
// of them is left: newCgroupDir looks at their cgroups.
func TestContainerMany(t *testing.T) {
	r := newRuntime(t)
	const n = 20
	var group sync.WaitGroup
	begin := time.Now()
	for range n {
		cfg := config(t, dockerSpec(t, "true"))
		group.Go(func() {
			if _, code := run(t, r, cfg); code != 0 {
				t.Errorf("%s ended with code %d", cfg.ID, code)
			}
		})
	}
	group.Wait()
	t.Logf("%d containers at once: %v", n, time.Since(begin))
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), "devpts") {
		t.Errorf("mounts of containers are left: %v\n%s", err, mounts)
	}
}

// TestContainerManyBinds: more than one message carries the descriptors of.
func TestContainerManyBinds(t *testing.T) {
	r := newRuntime(t)
	spec := dockerSpec(t, "sh", "-c", "cat /tmp/299/etc/hello; mount | grep -c ' /tmp/[0-9]'")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
	dir := t.TempDir()
	for i := range 300 {
		source := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Join(source, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(source, "etc/hello"), fmt.Appendln(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: fmt.Sprint("/tmp/", i), Type: "bind", Source: source, Options: []string{"rbind"}})
	}
	for range 2 { // a new process, and one from the reserve
		if out, code := run(t, r, config(t, spec)); out != "299\n300\n" || code != 0 {
			t.Errorf("%d, %q", code, out)
		}
		if err := r.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
}
