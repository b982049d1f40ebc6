package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"sampan/host/imagetest"
)

// treeFiles are the layers of oddLayers below the folder "tree", but for the
// file that is there twice, which Buildah refuses.
func treeFiles(t *testing.T) [][]imagetest.File {
	t.Helper()
	lister, err := os.ReadFile(filepath.Join(files.dir, "images", "lister"))
	if err != nil {
		t.Fatal(err)
	}
	layers := oddLayers(lister)
	for n, l := range layers {
		l = slices.DeleteFunc(l, func(f imagetest.File) bool { return f.Name == "twice" })
		for i := range l {
			if l[i].Name == "lister" {
				continue
			}
			l[i].Name = "tree/" + l[i].Name
			if l[i].Type == tar.TypeLink {
				l[i].Link = "tree/" + l[i].Link
			}
		}
		layers[n] = append([]imagetest.File{{Name: "tree/"}}, l...)
	}
	return layers
}

// sameAsOverlay pulls an image from a registry, compares what a container sees
// with what GNU tar and overlayfs make of its layers, and pushes it to another
// registry, where it must arrive as it was.
func sameAsOverlay(t *testing.T, h *home, ref, other string) {
	t.Helper()
	img, err := imagetest.Pull(ref)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[types.MediaType]int{}
	for _, l := range manifest.Layers {
		kinds[l.MediaType]++
	}
	t.Logf("%s: %s, layers %v", ref, manifest.MediaType, kinds)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	want, err := overlayListing(filepath.Join(files.dir, "images", "lister"), layers, "tree")
	if err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "pull", "-q", ref)
	got := h.sampan(t, "run", "--rm", "--entrypoint", "/lister", ref, "/tree")
	// Not every layer has the folder itself: GNU tar would date it now.
	timeless := regexp.MustCompile(`^("\." .*) time [0-9.]+`)
	compare(t, ref, strings.Split(timeless.ReplaceAllString(got, "$1"), "\n"), strings.Split(timeless.ReplaceAllString(string(want), "$1"), "\n"))
	if n := strings.Count(got, "\n"); n < 300 {
		t.Errorf("%s: only %d files", ref, n)
	}
	h.sampan(t, "tag", ref, other)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if out := h.sampan(t, "push", other); !strings.Contains(out, "digest: "+digest.String()) {
		t.Errorf("%s: pushed as %s, not as %s", ref, lastLine(out), digest)
	}
	// A layer that is there is not pulled in another form.
	h.sampan(t, "rmi", ref, other)
}

// 127 layers, compressed in every way that registries have them.
func TestManyLayers(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "only root can unpack devices and mount overlayfs to compare with: run the tests as root")
	}
	h := newHome(t)
	all := treeFiles(t)
	for i := len(all); i < 127; i++ {
		all = append(all, []imagetest.File{
			{Name: fmt.Sprintf("tree/layer/%d/file", i), Data: fmt.Append(nil, i)}, {Name: fmt.Sprintf("tree/layer/.wh.%d", i-10)},
			{Name: "tree/layer/last", Data: fmt.Append(nil, "layer ", i)},
			{Name: fmt.Sprintf("tree/layer/%d/", i)}, {Name: "tree/layer/"}, {Name: "tree/"}, // dated at the end, as GNU tar would
		})
	}
	var layers []mutate.Addendum
	for i, files := range all {
		l, err := imagetest.Layer(files...)
		if err == nil {
			l, err = inFormat(l, i)
		}
		if err != nil {
			t.Fatal(err)
		}
		mt, _ := l.MediaType()
		layers = append(layers, mutate.Addendum{Layer: l, MediaType: mt})
	}
	img, err := imagetest.Image(v1.Config{})
	if err == nil {
		img, err = mutate.Append(img, layers...)
	}
	if err != nil {
		t.Fatal(err)
	}
	ref := startRegistry(t) + "/many:127"
	if err := imagetest.Push(ref, img); err != nil {
		t.Fatal(err)
	}
	sameAsOverlay(t, h, ref, startRegistry(t)+"/other/many:127")
}

// TestLayerLimit: an image may have as many layers as overlayfs takes (500), and
// then there is no room below them for what every container has.
func TestLayerLimit(t *testing.T) {
	if !nightly() {
		skip(t, "takes most of a minute: make nightly runs it")
	}
	h := newHome(t)
	base, err := imagetest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	var layers []v1.Layer
	for i := range 499 {
		l, err := imagetest.Layer(imagetest.File{Name: fmt.Sprintf("layers/%d", i)}, imagetest.File{Name: "last", Data: fmt.Append(nil, i)})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	for _, n := range []int{499, 500} {
		img, err := mutate.AppendLayers(base, layers[:n-1]...) // base has one
		if err != nil {
			t.Fatal(err)
		}
		file, tag := filepath.Join(t.TempDir(), "image.tar"), fmt.Sprint("deep:", n)
		if err := imagetest.Archive(file, tag, img); err != nil {
			t.Fatal(err)
		}
		h.sampan(t, "load", "-q", "-i", file)
		box := fmt.Sprint("box", n)
		got := h.sampan(t, "run", "--name", box, tag, "sh", "-c", "ls /layers | wc -l; cat /last; echo; readlink /etc/mtab; ls -d /.dockerenv /dev/pts; echo >/new")
		if want := fmt.Sprintf("%d\n%d\n/proc/mounts\n/.dockerenv\n/dev/pts\n", n-1, n-2); got != want {
			t.Errorf("%d layers: %q, want %q", n, got, want)
		}
		if got := h.sampan(t, "diff", box); got != "A /new\n" {
			t.Errorf("%d layers: changes: %q", n, got)
		}
	}
	h.sampan(t, "commit", "box499", "deep:full")
	if got := h.sampan(t, "run", "--rm", "deep:full", "ls", "/new"); got != "/new\n" {
		t.Errorf("of 499 layers and one: %q", got)
	}
	if r := h.try(t, "", "sampan", "commit", "box500", "deep:more"); r.code != 1 || !strings.Contains(r.stderr, "501 layers: at most 500") {
		t.Errorf("of 500 layers and one: %+v", r)
	}
}

// inFormat gives a layer one of four forms.
func inFormat(l v1.Layer, n int) (v1.Layer, error) {
	if n%4 == 0 {
		return l, nil // Docker's media type, gzip
	}
	if n%4 == 1 {
		return gnuGzip(l)
	}
	plain, diffID, err := plainOf(l)
	if err != nil {
		return nil, err
	}
	if n%4 == 2 {
		z, err := zstd.NewWriter(nil)
		if err != nil {
			return nil, err
		}
		return named{static.NewLayer(z.EncodeAll(plain, nil), types.OCILayerZStd), diffID}, nil
	}
	return named{static.NewLayer(plain, types.OCIUncompressedLayer), diffID}, nil
}

// gnuGzip compresses a layer as no program in Go does.
func gnuGzip(l v1.Layer) (v1.Layer, error) {
	plain, diffID, err := plainOf(l)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("gzip", "-n")
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	return named{static.NewLayer(out, types.OCILayer), diffID}, err
}

func plainOf(l v1.Layer) ([]byte, v1.Hash, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return nil, diffID, err
	}
	r, err := l.Uncompressed()
	if err != nil {
		return nil, diffID, err
	}
	defer r.Close()
	plain, err := io.ReadAll(r)
	return plain, diffID, err
}

// named is a layer with its diff ID.
type named struct {
	v1.Layer
	diffID v1.Hash
}

func (n named) DiffID() (v1.Hash, error) { return n.diffID, nil }

// Images that skopeo, umoci and buildah of Debian made, in the forms that they
// know.
func TestForeignImages(t *testing.T) {
	if !nightly() {
		skip(t, "run by `make nightly`")
	}
	if os.Geteuid() != 0 {
		skip(t, "only root can unpack devices and mount overlayfs to compare with: run the tests as root")
	}
	for _, tool := range []string{"skopeo", "umoci", "buildah"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, "NOT TESTED: %v; `make nightly` installs it", err)
		}
	}
	f := &foreign{h: newHome(t), dir: t.TempDir(), registry: startRegistry(t), other: startRegistry(t)}
	if err := os.WriteFile(f.path("policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var layers []v1.Layer
	for _, files := range treeFiles(t) {
		l, err := imagetest.Layer(files...)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := imagetest.Image(v1.Config{Entrypoint: []string{"/lister"}}, layers...)
	if err == nil {
		err = imagetest.Archive(f.path("base.tar"), "base:latest", img)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Run("skopeo", f.skopeo)
	t.Run("umoci", f.umoci)
	t.Run("buildah", f.buildah)
}

type foreign struct {
	h               *home
	dir             string
	registry, other string
}

func (f *foreign) path(name string) string { return filepath.Join(f.dir, name) }

// tool runs a program.
func (f *foreign) tool(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+f.dir, "TMPDIR="+f.dir, "XDG_RUNTIME_DIR="+f.dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// copy is skopeo's, to the registry, and compares what is there then.
func (f *foreign) copy(t *testing.T, from, to string, flags ...string) {
	t.Helper()
	args := append([]string{"skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"}, flags...)
	f.tool(t, append(args, from, "docker://"+f.registry+"/"+to)...)
	f.same(t, to)
}

func (f *foreign) same(t *testing.T, image string) {
	t.Helper()
	sameAsOverlay(t, f.h, f.registry+"/"+image, f.other+"/"+image)
}

func (f *foreign) skopeo(t *testing.T) {
	base := "docker-archive:" + f.path("base.tar")
	// Elsewhere, for skopeo sends nothing that a registry has in another form.
	elsewhere := foreign{f.h, f.dir, f.other, f.registry}
	elsewhere.copy(t, base, "skopeo:zstd", "--format", "oci", "--dest-compress-format", "zstd")
	f.copy(t, base, "skopeo:docker", "--format", "v2s2")
	f.copy(t, base, "skopeo:oci", "--format", "oci")
	f.tool(t, "skopeo", "--insecure-policy", "copy", "--dest-decompress", base, "dir:"+f.path("plain"))
	f.copy(t, "dir:"+f.path("plain"), "skopeo:plain", "--preserve-digests")
	// Archives of its own, and of ours.
	for _, kind := range []string{"oci-archive", "docker-archive"} {
		archive := f.path(kind)
		f.tool(t, "skopeo", "--insecure-policy", "copy", "docker://"+f.registry+"/skopeo:oci", kind+":"+archive+":archived:"+kind, "--src-tls-verify=false")
		f.h.sampan(t, "load", "-q", "-i", archive)
		f.h.sampan(t, "pull", "-q", f.registry+"/skopeo:oci")
		ids := f.h.sampan(t, "image", "inspect", "-f", "{{.Id}}", f.registry+"/skopeo:oci", "archived:"+kind)
		if a, b, _ := strings.Cut(strings.TrimSpace(ids), "\n"); a != b {
			t.Errorf("%s: loaded as %s, not %s", kind, b, a)
		}
		f.h.sampan(t, "save", "-o", archive+".ours", "archived:"+kind)
		f.h.sampan(t, "rmi", "archived:"+kind, f.registry+"/skopeo:oci")
		f.copy(t, kind+":"+archive+".ours", "ours:"+kind)
	}
}

func (f *foreign) umoci(t *testing.T) {
	layout, bundle := f.path("umoci"), f.path("bundle")
	f.tool(t, "skopeo", "--insecure-policy", "copy", "docker-archive:"+f.path("base.tar"), "oci:"+layout+":base")
	f.tool(t, "umoci", "unpack", "--image", layout+":base", bundle)
	changeTree(t, filepath.Join(bundle, "rootfs", "tree"))
	f.tool(t, "umoci", "repack", "--image", layout+":changed", bundle)
	f.copy(t, "oci:"+layout+":changed", "umoci:3")
	f.tool(t, "umoci", "tag", "--image", layout+":changed", "many")
	for i := 3; i < 127; i++ {
		file := f.path("inserted")
		if err := os.WriteFile(file, fmt.Append(nil, i), 0o640); err != nil {
			t.Fatal(err)
		}
		f.tool(t, "umoci", "insert", "--image", layout+":many", file, fmt.Sprintf("/tree/implied/%d", i%50))
	}
	f.copy(t, "oci:"+layout+":many", "umoci:127")
}

func (f *foreign) buildah(t *testing.T) {
	b := []string{"buildah", "--root", f.path("storage"), "--runroot", f.path("run"), "--storage-driver", "vfs"}
	run := func(args ...string) string {
		t.Helper()
		return f.tool(t, append(b[:len(b):len(b)], args...)...)
	}
	policy := "--signature-policy=" + f.path("policy.json")
	c := run("from", policy, "docker-archive:"+f.path("base.tar"))
	tree := filepath.Join(run("mount", c), "tree")
	changeTree(t, tree)
	folder := filepath.Join(tree, "many") // umoci would hide what a folder had below a file
	if err := errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	run("umount", c)
	for _, format := range []string{"docker", "oci"} {
		run("commit", policy, "--format", format, c, "built:"+format)
		kind := map[string]string{"docker": "v2s2", "oci": "oci"}[format]
		for form, flags := range map[string][]string{"gzip": nil, "plain": {"-D"}} {
			to := "buildah:" + format + "-" + form
			push := append([]string{"push", policy, "--tls-verify=false", "--format", kind}, flags...)
			run(append(push, "built:"+format, "docker://"+f.registry+"/"+to)...)
			f.same(t, to)
		}
	}
	run("commit", policy, "--squash", c, "built:one")
	run("push", policy, "--tls-verify=false", "built:one", "docker://"+f.registry+"/buildah:1")
	f.same(t, "buildah:1")
}

// changeTree does to a folder what layers are made of.
func changeTree(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	write := func(name, text string, mode os.FileMode) error {
		return errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o755), os.WriteFile(at(name), []byte(text), mode), os.Chmod(at(name), mode))
	}
	err := errors.Join(
		write("added/file", "added", 0o600), write("added/\xfe\xff", "no UTF-8", 0o644), os.Chown(at("added/file"), 1234, 70000),
		os.Link(at("added/file"), at("added/link")), os.Symlink("../odd", at("added/soft")),
		unix.Mkfifo(at("added/fifo"), 0o600), unix.Mknod(at("added/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(at("added/file"), "user.added", []byte{0, 1, 255}, 0),
		write("odd/file", "other content\n", 0o4711), os.Remove(at("odd/empty")), os.Remove(at("odd/fifo")),
		os.RemoveAll(at("opaque")), write("opaque/new", "in a new folder", 0o644),
		os.Remove(at("replaced")), write("replaced/again", "a folder where a file was", 0o644),
		os.Chmod(at("odd/sticky"), 0o700),
	)
	for i := range 300 {
		err = errors.Join(err, write(fmt.Sprintf("lot/%d", i), strings.Repeat(fmt.Sprint(i), 5000), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}
