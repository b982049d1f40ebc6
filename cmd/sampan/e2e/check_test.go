package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sampan/host/imagetest"
)

// Whatever of the image store is damaged or gone, `machine check` finds; it
// repairs what the store itself or the registry still has, and names the rest.
func TestMachineCheck(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	ref := startRegistry(t) + "/team/busybox:1"
	if err := imagetest.Push(ref, imageFromArchive(t, "busybox.tar")); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "pull", "-q", ref)
	root := filepath.Join(t.TempDir(), "root.tar")
	h.must(t, "tar", "-C", files.dir, "-cf", root, "images/busybox.tar")
	h.sampan(t, "import", root, "local:1")

	in := func(dir, format, image, suffix string) string {
		t.Helper()
		digest := strings.TrimSpace(h.sampan(t, "image", "inspect", "-f", format, image))
		return filepath.Join(h.dir, "images", dir, digest[strings.LastIndexByte(digest, ':')+1:]+suffix)
	}
	layerOf := `{{index .RootFS.Layers 0}}`
	layer, recipe := in("layers", layerOf, ref, ".erofs"), in("recipes", layerOf, ref, "")
	manifest, config := in("blobs", `{{index .RepoDigests 0}}`, ref, ""), in("blobs", `{{.Id}}`, ref, "")
	local := in("layers", layerOf, "local:1", ".erofs")
	damage := func(path string, at int64) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 1
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sound := "Verified: 2 layers, 3 documents\n"
	if out := h.sampan(t, "machine", "check"); out != sound {
		t.Errorf("a sound store: %s", out)
	}
	before := tree(t, filepath.Join(h.dir, "images"))
	for _, c := range []struct {
		what  string
		spoil func()
		words string
	}{
		{"a layer's metadata", func() { damage(layer, 1024+48) }, "its image was made again"},
		{"a layer's contents", func() { damage(layer, 8192) }, "was pulled again"},
		{"a recipe", func() { damage(recipe, 10) }, "was pulled again"},
		{"a manifest", func() { damage(manifest, 10) }, "its manifest was pulled again"},
		{"a configuration", func() { damage(config, 10) }, "its configuration was pulled again"},
		{"a layer that is gone", func() { os.Remove(layer) }, "was pulled again"},
	} {
		c.spoil()
		out := h.sampan(t, "machine", "check")
		if !strings.HasPrefix(out, "Repaired: ") || !strings.Contains(out, c.words+"\n") || strings.Count(out, "\n") != 2 {
			t.Errorf("%s: %s", c.what, out)
		}
		if out := h.sampan(t, "machine", "check"); out != sound {
			t.Errorf("%s, afterwards: %s", c.what, out)
		}
		if after := tree(t, filepath.Join(h.dir, "images")); after != before {
			t.Errorf("%s: the store has\n%s\nhad\n%s", c.what, after, before)
		}
	}
	// Nobody else has the import's layer.
	damage(local, 8192)
	for range 2 {
		r := h.try(t, "", "sampan", "machine", "check")
		if r.code != 1 || !strings.Contains(r.stdout, "Lost: image ") || !strings.Contains(r.stdout, "(local:1): layer ") || !strings.Contains(r.stderr, "the image store has lost something") {
			t.Errorf("a lost layer: %+v", r)
		}
	}
	if r := h.try(t, "", "sampan", "save", "-o", root, "local:1"); r.code != 1 || !strings.Contains(r.stderr, "layer") {
		t.Errorf("saved a lost layer: %+v", r)
	}
	h.sampan(t, "rmi", "local:1")
	if out := h.sampan(t, "machine", "check"); out != "Verified: 1 layers, 2 documents\n" {
		t.Errorf("without the image: %s", out)
	}
	if _, err := os.Stat(local); err == nil {
		t.Error("the damaged layer is still there")
	}
}
