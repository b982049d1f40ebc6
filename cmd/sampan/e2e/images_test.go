package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"sampan/host/imagetest"
)

// nginxConf serves /srv and logs to the container's own output.
const nginxConf = `user www-data;
worker_processes 2;
error_log /dev/stderr;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	access_log /dev/stdout;
	sendfile on;
	server { listen 80; root /srv; }
}
`

// makeNginx packs a Debian root with nginx in several layers.
func makeNginx(root, archive string) error {
	base, err := imagetest.TreeLayer(root)
	if err != nil {
		return fmt.Errorf("%w: run `make test`, which makes it", err)
	}
	read := func(name string) []byte {
		b, e := os.ReadFile(filepath.Join(root, name))
		err = errors.Join(err, e)
		return b
	}
	users, err2 := imagetest.Layer(
		imagetest.File{Name: "etc/passwd", Data: read("usr/share/base-passwd/passwd.master")},
		imagetest.File{Name: "etc/group", Data: read("usr/share/base-passwd/group.master")},
	)
	conf, err3 := imagetest.Layer(
		imagetest.File{Name: "etc/nginx/nginx.conf", Data: []byte(nginxConf)},
		imagetest.File{Name: "etc/nginx/.wh.sites-available"},
		imagetest.File{Name: "srv/"},
		imagetest.File{Name: "srv/index.html", Data: []byte("from the image\n")},
	)
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	img, err := imagetest.Image(v1.Config{
		Entrypoint:   []string{"nginx"},
		Cmd:          []string{"-g", "daemon off;"},
		Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGQUIT",
	}, base, users, conf)
	if err != nil {
		return err
	}
	return imagetest.Archive(archive, "nginx:latest", img)
}

// oddLayers is everything that a layer may hold, and a second layer that
// changes and hides parts of it.
func oddLayers(lister []byte) [][]imagetest.File {
	long := strings.Repeat("long-name-", 20)
	deep := strings.Repeat("deep/", 60)
	at := imagetest.Epoch.Add(-3 * time.Hour).Add(123456789 * time.Nanosecond)
	big := []byte(strings.Repeat("0123456789abcdef", 40000))
	first := []imagetest.File{
		{Name: "lister", Mode: 0o755, Data: lister},
		{Name: "odd/"},
		{Name: "odd/file", Data: []byte("content\n"), Time: at, UID: 70000, GID: 80000},
		{Name: "odd/empty"},
		{Name: "odd/big", Data: big},
		{Name: "odd/block", Data: big[:4096]},
		{Name: "odd/hard1", Type: tar.TypeLink, Link: "odd/file"},
		{Name: "odd/hard2", Type: tar.TypeLink, Link: "odd/hard1"},
		{Name: "odd/soft", Type: tar.TypeSymlink, Link: "file"},
		{Name: "odd/dangling", Type: tar.TypeSymlink, Link: "/no/such/file"},
		{Name: "odd/" + long + ".1", Data: []byte("long")},
		{Name: "odd/longlink", Type: tar.TypeSymlink, Link: long + long},
		{Name: "odd/latin-\xe9\xff", Data: []byte("not UTF-8")},
		{Name: "odd/with \n newline", Data: []byte("odd")},
		{Name: "odd/setuid", Mode: 0o4755}, {Name: "odd/setgid", Mode: 0o2755}, {Name: "odd/none", Mode: 0o001},
		{Name: "odd/sticky/", Mode: 0o1777}, {Name: "odd/sgid/", Mode: 0o2770, GID: 50},
		{Name: "odd/char", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
		{Name: "odd/block8", Type: tar.TypeBlock, Major: 8, Minor: 1},
		{Name: "odd/fifo", Type: tar.TypeFifo},
		{Name: "odd/xattr", Xattrs: map[string]string{"user.one": "1", "user.binary": "\x00\x01\xff"}},
		{Name: "odd/capable", Mode: 0o755, Xattrs: map[string]string{
			"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
	}
	for i := range strings.Count(deep, "/") {
		first = append(first, imagetest.File{Name: "odd/" + strings.Repeat("deep/", i+1)})
	}
	first = append(first, []imagetest.File{
		{Name: "odd/" + deep + "file", Data: []byte("deep")},
		{Name: "hidden/"}, {Name: "hidden/file", Data: []byte("x")}, {Name: "hidden/dir/"}, {Name: "hidden/dir/file", Data: []byte("x")},
		{Name: "opaque/"}, {Name: "opaque/below", Data: []byte("below")}, {Name: "opaque/dir/"}, {Name: "opaque/dir/below", Data: []byte("below")},
		{Name: "replaced/", Mode: 0o700}, {Name: "replaced/file", Data: []byte("x")},
		{Name: "twice", Data: []byte("first")}, {Name: "twice", Data: []byte("second"), Mode: 0o600},
	}...)
	for i := range 300 { // more than one block of directory entries
		if i == 0 {
			first = append(first, imagetest.File{Name: "many/"})
		}
		first = append(first, imagetest.File{Name: fmt.Sprintf("many/file%04d", i), Data: fmt.Append(nil, i)})
	}
	second := []imagetest.File{
		// GNU tar dates a folder "now" when it comes back to it: all of one at once.
		{Name: "odd/"}, {Name: "odd/soft", Data: []byte("no longer a link")}, {Name: "odd/.wh.hard2"},
		{Name: "hidden/"}, {Name: "hidden/.wh.file"}, {Name: "hidden/.wh.dir"},
		{Name: "opaque/", Mode: 0o750}, {Name: "opaque/.wh..wh..opq"}, {Name: "opaque/above", Data: []byte("above")},
		{Name: ".wh.replaced"}, {Name: "replaced", Data: []byte("a file now")},
		// Parents that are implied have no time: the listing leaves it out.
		{Name: "new/implied/implied/c", Data: []byte("c")}, {Name: "new/"},
	}
	return [][]imagetest.File{first, second}
}

// makeOdd writes the image of oddLayers, and, when run by root, how it looks
// when GNU tar unpacks it and overlayfs stacks it.
func makeOdd(dir string) error {
	bin := filepath.Join(dir, "lister")
	build := exec.Command("go", "build", "-o", bin, "./lister")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build lister: %w\n%s", err, out)
	}
	lister, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	var layers []v1.Layer
	for _, files := range oddLayers(lister) {
		l, err := imagetest.Layer(files...)
		if err != nil {
			return err
		}
		layers = append(layers, l)
	}
	img, err := imagetest.Image(v1.Config{Entrypoint: []string{"/lister"}}, layers...)
	if err != nil {
		return err
	}
	if err := imagetest.Archive(filepath.Join(dir, "odd.tar"), "odd:latest", img); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	want, err := overlayListing(bin, layers, "")
	if err != nil {
		return fmt.Errorf("GNU tar and overlay: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "odd.want"), want, 0o644)
}

// overlayListing unpacks layers with GNU tar, turns the whiteouts into
// overlayfs's own, stacks them with the host's kernel and lists a folder of the
// result.
func overlayListing(lister string, layers []v1.Layer, folder string) (_ []byte, err error) {
	tmp, err := os.MkdirTemp("", "overlay-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	lower := []string{"empty"} // overlayfs wants two
	if err := os.Mkdir(filepath.Join(tmp, "empty"), 0o755); err != nil {
		return nil, err
	}
	for i, l := range layers {
		dir := filepath.Join(tmp, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if err := untar(l, dir); err != nil {
			return nil, err
		}
		if err := convertWhiteouts(dir); err != nil {
			return nil, err
		}
		lower = append([]string{fmt.Sprint(i)}, lower...)
	}
	merged := filepath.Join(tmp, "merged")
	if err := os.Mkdir(merged, 0o755); err != nil {
		return nil, err
	}
	mount := exec.Command("mount", "-i", "-t", "overlay", "overlay", "-o", "ro,lowerdir="+strings.Join(lower, ":"), merged)
	mount.Dir = tmp // options have a page of room
	if out, err := mount.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mount: %w: %s", err, out)
	}
	defer func() {
		if out, e := exec.Command("umount", merged).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("umount: %w: %s", e, out))
		}
	}()
	return exec.Command(lister, filepath.Join(merged, folder)).Output()
}

func untar(l v1.Layer, dir string) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("tar", "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-")
	cmd.Stdin = io.MultiReader(r, bytes.NewReader(make([]byte, 10<<10))) // umoci leaves the end out
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

func convertWhiteouts(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, ok := strings.CutPrefix(filepath.Base(path), ".wh.")
		if err != nil || !ok {
			return err
		}
		parent := filepath.Dir(path)
		fi, err := os.Stat(parent)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if name == ".wh..opq" {
			err = unix.Setxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
		} else {
			// In the layer itself the whiteout hides; an entry of the same name
			// in the same layer wins.
			target := filepath.Join(parent, name)
			if _, e := os.Lstat(target); e != nil {
				err = unix.Mknod(target, unix.S_IFCHR, 0)
			}
		}
		return errors.Join(err, os.Chtimes(parent, fi.ModTime(), fi.ModTime()))
	})
}
