package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/proto"
)

// layer packs files (by path; "→x" is a symbolic link) as an EROFS file.
func layer(t *testing.T, files map[string]string) []byte {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "→"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "layer")
	// Owned by somebody, to see it kept.
	if msg, err := exec.Command("mkfs.erofs", "--force-uid=1000", "--force-gid=1001", out, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// busybox is a layer with a shell and a few commands.
func busybox(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (make deps installs busybox-static)", err)
	}
	files := map[string]string{
		"bin/busybox": string(b), "etc/passwd": "root:x:0:0::/:/bin/sh\nuser:x:1000:1001::/:/bin/sh\n",
		"etc/hosts": "from the image\n", "usr/x": "", "www/index.html": "hello from a container\n",
	}
	for _, name := range strings.Fields("sh cat ls echo true sleep id httpd stat grep wget ip mount head timeout stty") {
		files["bin/"+name] = "→busybox"
	}
	return layer(t, files)
}

// put writes a file in the guest.
func (g *guest) put(path string, data []byte) {
	g.t.Helper()
	id := "put" + strings.ReplaceAll(path, "/", "_")
	in := g.stdio("", id, proto.Stdin)
	_, err := g.Exec(g.ctx(), &proto.ExecRequest{
		Exec: id, Process: encode(g.t, specs.Process{Args: []string{"/bin/sh", "-c", "cat > " + path}, Env: []string{"PATH=/bin"}, Cwd: "/"}),
		Streams: &proto.Streams{Stdin: true},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := in.Write(data); err != nil {
		g.t.Fatal(err)
	}
	in.(interface{ CloseWrite() error }).CloseWrite()
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Exec: id}); err != nil || w.ExitCode != 0 {
		g.t.Fatalf("write %s: %v, %v", path, w, err)
	}
}
