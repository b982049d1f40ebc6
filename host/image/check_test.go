package image

import (
	"bytes"
	"context"
	"os"
	"reflect"
	"strings"
	"testing"
)

// damage changes a byte of a file in the store.
func damage(t testing.TB, path string, at int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func check(t testing.TB, s *Store) Report {
	t.Helper()
	r, err := s.Check(context.Background(), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); strings.Contains(left, "tmp/") {
		t.Errorf("left behind:\n%s", left)
	}
	return r
}

// Damage of each kind is found, and repaired from what else there is: the
// layer's own contents, then the registry. What neither has is told.
func TestCheck(t *testing.T) {
	tr, s := newTroubled(t), openStore(t)
	ref, _ := tr.push(t)
	pulled, err := s.Pull(context.Background(), ref, PullOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	local := tarOf(t, "local", random(9, 50_000))
	if _, err := s.Load(context.Background(), bytes.NewReader(saved(t, configOf(t, local), "local", local)), nil); err != nil {
		t.Fatal(err)
	}
	if r := check(t, s); r.Layers != 2 || r.Documents != 3 || len(r.Repaired)+len(r.Lost) != 0 {
		t.Errorf("sound store: %+v", r)
	}
	layer := s.layerPath(pulled.DiffIDs[0])
	sound, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	manifest := s.snapshot().Images[pulled.ID].Manifest
	for _, c := range []struct {
		what, path string
		at         int64
		words      string
	}{
		{"metadata of a layer", layer, 1024 + 48, "was made again"}, // the UUID
		{"contents of a layer", layer, 8192, "was pulled again"},
		{"a recipe", s.recipePath(pulled.DiffIDs[0]), 10, "was pulled again"},
		{"a configuration", s.blobPath(pulled.ID), 10, "was pulled again"},
		{"a manifest", s.blobPath(manifest), 10, "was pulled again"},
	} {
		damage(t, c.path, c.at)
		r := check(t, s)
		if len(r.Repaired) != 1 || len(r.Lost) != 0 || !strings.Contains(r.Repaired[0], c.words) {
			t.Errorf("%s: %+v", c.what, r)
		}
		if r := check(t, s); len(r.Repaired)+len(r.Lost) != 0 {
			t.Errorf("%s: again: %+v", c.what, r)
		}
		if b, err := os.ReadFile(layer); err != nil || !bytes.Equal(b, sound) {
			t.Errorf("%s: the layer is not what it was: %v", c.what, err)
		}
	}
	// The registry is gone: what is lost is told, every time, and comes back
	// by a load.
	tr.Close()
	damage(t, s.layerPath(digestOf(local)), 8192)
	for range 2 {
		if r := check(t, s); len(r.Lost) != 1 || !strings.Contains(r.Lost[0], "(local:latest): layer "+short(digestOf(local))+"; pull or load") {
			t.Errorf("lost layer: %+v", r)
		}
	}
	if _, err := s.Save([]string{"local"}); err == nil {
		t.Error("saved a damaged layer")
	}
	if _, err := s.Load(context.Background(), bytes.NewReader(saved(t, configOf(t, local), "local", local)), nil); err != nil {
		t.Fatal(err)
	}
	if r := check(t, s); len(r.Lost)+len(r.Repaired) != 0 {
		t.Errorf("after the load: %+v", r)
	}
}

// What keeps a layer from being made again, but is not its own damage, ends the
// check and condemns nothing.
func TestCheckHindered(t *testing.T) {
	s := openStore(t)
	img := load(t, s, "local", tarOf(t, "local", random(9, 50_000)))
	diffID := img.DiffIDs[0]
	before := s.snapshot()
	for what, hinder := range map[string]func(t *testing.T, s *Store){
		"limit of a layer's size": func(_ *testing.T, s *Store) { s.SetLimits(Limits{LayerSize: 1}) },
		"no place for temporary files": func(t *testing.T, s *Store) {
			if err := os.Remove(s.tmp()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Mkdir(s.tmp(), 0o700) })
		},
		"file that can't be opened": func(t *testing.T, s *Store) {
			path := s.recipePath(diffID)
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Rename(path+".away", path) })
			if err := os.Symlink(path, path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			limits := s.limits
			defer func() { s.limits = limits }()
			hinder(t, s)
			r, err := s.Check(context.Background(), PullOptions{})
			if err == nil || !strings.Contains(err.Error(), "check layer "+short(diffID)+": ") {
				t.Errorf("got %+v, %v", r, err)
			}
			if !reflect.DeepEqual(s.snapshot(), before) {
				t.Errorf("the index has changed: %+v", s.snapshot().Layers)
			}
		})
	}
	// A file that is gone is damage.
	if err := os.Remove(s.recipePath(diffID)); err != nil {
		t.Fatal(err)
	}
	if r := check(t, s); len(r.Lost) != 1 || s.snapshot().Layers[diffID].Tar != 0 {
		t.Errorf("lost recipe: %+v", r)
	}
}
