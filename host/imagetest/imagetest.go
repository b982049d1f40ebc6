// Package imagetest makes images from local files, for tests, benchmarks and
// the demo: none of them ever needs a network.
package imagetest

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

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Epoch is the modification time of everything made here: the same input gives
// the same digest.
var Epoch = time.Unix(1700000000, 0).UTC()

// File is one entry of a layer. The zero Type is a regular file, or a directory
// when Name ends in a slash.
type File struct {
	Name     string
	Type     byte // tar.TypeReg, TypeDir, TypeSymlink, TypeLink, TypeChar, …
	Mode     int64
	UID, GID int
	Link     string // target of a link
	Major    int64
	Minor    int64
	Xattrs   map[string]string
	Data     []byte
	Time     time.Time // default: Epoch
}

// Layer makes a gzipped layer of files, in their order.
func Layer(files ...File) (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		if err := writeFile(tw, f); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", f.Name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return fromTar(buf.Bytes())
}

func fromTar(b []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}, tarball.WithCompressedCaching)
}

func writeFile(tw *tar.Writer, f File) error {
	h := &tar.Header{
		Name: f.Name, Typeflag: f.Type, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
		Linkname: f.Link, Devmajor: f.Major, Devminor: f.Minor,
		Size: int64(len(f.Data)), ModTime: f.Time, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if strings.HasSuffix(f.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = Epoch
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	for k, v := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(f.Data)
	return err
}

// TreeLayer makes a layer of everything below dir, owned by root, but for what
// one of the patterns (filepath.Match) matches as a path within it.
func TreeLayer(dir string, without ...string) (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		for _, pattern := range without {
			left, err := filepath.Match(pattern, rel)
			switch {
			case err != nil:
				return err
			case left && d.IsDir():
				return fs.SkipDir
			case left:
				return nil
			}
		}
		f := File{Name: rel, Mode: mode(fi.Mode()), Time: fi.ModTime()}
		switch {
		case d.IsDir():
			f.Name += "/"
		case fi.Mode().Type() == fs.ModeSymlink:
			f.Type = tar.TypeSymlink
			f.Link, err = os.Readlink(path)
		case fi.Mode().IsRegular():
			f.Data, err = os.ReadFile(path)
		default:
			return fmt.Errorf("%s: neither file, directory nor symbolic link", path)
		}
		if err != nil {
			return err
		}
		return writeFile(tw, f)
	})
	if err != nil {
		return nil, fmt.Errorf("layer of %s: %w", dir, err)
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return fromTar(buf.Bytes())
}

// mode is the twelve permission bits of m.
func mode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for i, special := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
		if m&special != 0 {
			bits |= 0o1000 << i
		}
	}
	return bits
}

// Image stacks layers, the lowest first, under a configuration for linux/amd64.
func Image(cfg v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", cfg
	file.Created = v1.Time{Time: Epoch}
	return mutate.ConfigFile(img, file)
}

// Archive writes img as `docker save` does.
func Archive(path, tag string, img v1.Image) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, ref, img)
}

// Push sends img to a registry on loopback.
func Push(ref string, img v1.Image) error {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(r, img)
}

// Pull finds an image at a registry on loopback; its blobs are read when they are
// asked for.
func Pull(ref string) (v1.Image, error) {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(r)
}

// Busybox is an image of Debian's statically linked busybox with all its
// applets as symbolic links, the usual directories and users.
func Busybox(cmd ...string) (v1.Image, error) {
	bin, err := busyboxBinary()
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(bin, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", bin, err)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	files := []File{
		{Name: "bin/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "root/", Mode: 0o700},
		{Name: "tmp/", Mode: 0o1777}, {Name: "var/"}, {Name: "var/tmp/", Mode: 0o1777}, {Name: "usr/"},
		{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/home:/bin/false\n")},
		{Name: "etc/group", Data: []byte("root:x:0:\nuser:x:1000:\nstaff:x:50:user\nnogroup:x:65534:\n")},
		{Name: "bin/busybox", Mode: 0o755, Data: data},
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			files = append(files, File{Name: "bin/" + applet, Type: tar.TypeSymlink, Link: "busybox"})
		}
	}
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	if len(cmd) == 0 {
		cmd = []string{"sh"}
	}
	return Image(v1.Config{
		Cmd: cmd,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}, layer)
}

// busyboxBinary finds the static busybox of Debian's package busybox-static.
func busyboxBinary() (string, error) {
	for _, p := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no busybox on this machine: run `make deps` (package busybox-static)")
}
