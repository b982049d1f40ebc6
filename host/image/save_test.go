package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func save(t testing.TB, s *Store, refs ...string) []byte {
	t.Helper()
	a, err := s.Save(refs)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var buf bytes.Buffer
	if err := a.Write(context.Background(), &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// An archive has what went in, whoever reads it, and comes out of another store
// as the same bytes.
func TestSave(t *testing.T) {
	s := openStore(t)
	a, b, c := tarOf(t, "a", random(1, 100_000)), tarOf(t, "b", "b"), tarOf(t, "c", "c")
	for tag, layers := range map[string][][]byte{"one:1": {a, b, a}, "two:2": {a, c}} {
		if _, err := s.Load(context.Background(), bytes.NewReader(saved(t, configOf(t, layers...), tag, layers...)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Tag("one:1", "one:other"); err != nil {
		t.Fatal(err)
	}
	two, _ := s.Get("two:2")
	archive := save(t, s, "one", two.ID)

	other := openStore(t)
	loaded, err := other.Load(context.Background(), bytes.NewReader(archive), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"one:1", "one:other", two.ID}; !slices.Equal(loaded, want) {
		t.Errorf("loaded %q, want %q", loaded, want)
	}
	if again := save(t, other, "one", two.ID); !bytes.Equal(again, archive) {
		t.Errorf("saved again as %d other bytes, of %d", len(again), len(archive))
	}
	// Other readers of both layouts.
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	tag, _ := name.NewTag("one:1")
	img, err := tarball.ImageFromPath(path, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("docker archive: %v", err)
	}
	dir := t.TempDir()
	unpack(t, archive, dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := index.IndexManifest()
	if err != nil || len(im.Manifests) != 3 {
		t.Fatalf("OCI layout: %+v, %v", im, err)
	}
	for _, d := range im.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, img)
	}
	var list []map[string]any
	raw, _ := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err := json.Unmarshal(raw, &list); err != nil || len(list) != 2 || list[1]["RepoTags"] != nil {
		t.Errorf("manifest.json: %s %v", raw, err)
	}
}

func unpack(t testing.TB, archive []byte, dir string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, 0o755)
		} else {
			var b []byte
			if b, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A damaged layer ends a save with an error, not with a wrong archive.
func TestSaveDamaged(t *testing.T) {
	s := openStore(t)
	a := tarOf(t, "a", random(1, 100_000))
	if _, err := s.Load(context.Background(), bytes.NewReader(saved(t, configOf(t, a), "x", a)), nil); err != nil {
		t.Fatal(err)
	}
	path := s.layerPath(digestOf(a))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[8192] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	archive, err := s.Save([]string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if err := archive.Write(context.Background(), io.Discard); err == nil || !strings.Contains(err.Error(), "damaged on disk") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Save([]string{"nothing"}); err == nil {
		t.Error("saved nothing")
	}
}
