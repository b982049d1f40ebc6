package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

// load puts a small image into a store and returns it.
func load(t testing.TB, s *Store, tag string, layers ...[]byte) Image {
	t.Helper()
	if _, err := s.Load(context.Background(), bytes.NewReader(saved(t, configOf(t, layers...), tag, layers...)), nil); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(tag)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestGet(t *testing.T) {
	s := openStore(t)
	img := load(t, s, "nginx:latest", tarOf(t, "a", "a"))
	for _, ref := range []string{"nginx", "nginx:latest", "library/nginx", "docker.io/library/nginx:latest", img.ID, hexOf(img.ID), hexOf(img.ID)[:5], img.ID[:12]} {
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("%s: %v", ref, err)
		}
	}
	none := strings.Repeat("f", 64)
	for ref, want := range map[string]string{
		"nginx:1":              "No such image: nginx:1",
		"foo":                  "No such image: foo:latest",
		"host.example/x":       "No such image: host.example/x:latest",
		none:                   "No such image: sha256:" + none,
		"sha256:" + none:       "No such image: sha256:" + none,
		"nginx@sha256:" + none: "No such image: nginx@sha256:" + none,
	} {
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) || err.Error() != want {
			t.Errorf("%s: got %v, want %s", ref, err, want)
		}
	}
	if _, err := s.Get("Not A Name"); !errors.Is(err, ErrInvalid) || err.Error() != "invalid reference format: repository name (library/Not A Name) must be lowercase" {
		t.Errorf("got %v", err)
	}
}

func TestTag(t *testing.T) {
	s := openStore(t)
	a, b := load(t, s, "a", tarOf(t, "a", "a")), load(t, s, "b", tarOf(t, "b", "b"))
	if err := s.Tag("a", "host.example:5000/x:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(b.ID, "a"); err != nil { // takes the name away
		t.Fatal(err)
	}
	a, err := s.Get(a.ID)
	if err != nil || !reflect.DeepEqual(a.Tags, []string{"host.example:5000/x:1"}) {
		t.Errorf("a has %v, %v", a.Tags, err)
	}
	b, err = s.Get("b")
	if err != nil || !reflect.DeepEqual(b.Tags, []string{"a:latest", "b:latest"}) {
		t.Errorf("b has %v, %v", b.Tags, err)
	}
	for _, bad := range []string{"X", "x@sha256:" + strings.Repeat("0", 64), "sha256:abc"} {
		if err := s.Tag("b", bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
	if err := s.Tag("none", "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRemove(t *testing.T) {
	shared, own := tarOf(t, "shared", "s"), tarOf(t, "own", "o")
	const running, stopped = "1111111111111111", "2222222222222222"
	tests := []struct {
		name   string
		tags   []string // beside "img:1"
		remove string   // "ID" is replaced
		o      RemoveOptions
		want   string
		err    string
	}{
		{name: "last name", remove: "img:1", want: "-img:1 ID LAYER"},
		{name: "by ID", remove: "ID", want: "-img:1 ID LAYER"},
		{name: "one of two names", tags: []string{"img:2"}, remove: "img:1", want: "-img:1"},
		{name: "ID with two names", tags: []string{"img:2"}, remove: "ID",
			err: "conflict: unable to delete ID12 (must be forced) - image is referenced in multiple repositories"},
		{name: "ID with two names, forced", tags: []string{"img:2"}, remove: "ID", o: RemoveOptions{Force: true}, want: "-img:1 -img:2 ID LAYER"},
		{name: "name, used", remove: "img:1", o: RemoveOptions{InUse: func(string) []string { return []string{stopped} }},
			err: `conflict: unable to remove repository reference "img:1" (must force) - container 222222222222 is using its referenced image ID12`},
		{name: "one of two names, used", tags: []string{"img:2"}, remove: "img:1", o: RemoveOptions{InUse: func(string) []string { return []string{stopped} }}, want: "-img:1"},
		{name: "ID, used", remove: "ID", o: RemoveOptions{InUse: func(string) []string { return []string{stopped} }},
			err: "conflict: unable to delete ID12 (must be forced) - image is being used by stopped container 222222222222"},
		{name: "ID, used, forced", remove: "ID", o: RemoveOptions{Force: true, InUse: func(string) []string { return []string{stopped} }}, want: "-img:1 ID LAYER"},
		{name: "ID, running, forced", remove: "ID", o: RemoveOptions{Force: true, Running: func(string) []string { return []string{running} }},
			err: "conflict: unable to delete ID12 (cannot be forced) - image is being used by running container 111111111111"},
		{name: "name, running, forced", remove: "img:1", o: RemoveOptions{Force: true, Running: func(string) []string { return []string{running} }}, want: "-img:1"},
		{name: "missing", remove: "none", err: "No such image: none:latest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			other := load(t, s, "other:1", shared)
			img := load(t, s, "img:1", shared, own)
			for _, tag := range tt.tags {
				if err := s.Tag("img:1", tag); err != nil {
					t.Fatal(err)
				}
			}
			removed, err := s.Remove(strings.ReplaceAll(tt.remove, "ID", img.ID), tt.o)
			if tt.err != "" {
				if want := strings.ReplaceAll(tt.err, "ID12", short(img.ID)); err == nil || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
				if _, err := s.Get("img:1"); err != nil {
					t.Error(err)
				}
				return
			}
			var got []string
			for _, r := range removed {
				if r.Untagged != "" {
					got = append(got, "-"+r.Untagged)
				} else {
					got = append(got, r.Deleted)
				}
			}
			want := strings.NewReplacer("ID", img.ID, "LAYER", digestOf(own)).Replace(tt.want)
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("got %v, %v, want %s", got, err, want)
			}
			gone := strings.Contains(tt.want, "LAYER")
			if has := strings.Contains(files(t, s), img.Layers[1]); has == gone {
				t.Errorf("files:\n%s", files(t, s))
			}
			if !strings.Contains(files(t, s), other.Layers[0]) {
				t.Error("the other image has lost its layer")
			}
		})
	}
}

// TestHold keeps the layers of a removed image for who still uses them.
func TestHold(t *testing.T) {
	s := openStore(t)
	img := load(t, s, "img", tarOf(t, "a", "a"))
	first, second := s.Hold(img.Layers), s.Hold(img.Layers)
	if _, err := s.Remove("img", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	has := func() bool { return strings.Contains(files(t, s), img.Layers[0]) }
	first()
	first()
	if !has() {
		t.Fatal("layer deleted under its holder")
	}
	// After a restart nobody holds yet; Open must not decide.
	again, err := Open(s.dir, s.log)
	if err != nil || !has() {
		t.Fatalf("layer lost by a restart: %v", err)
	}
	release := again.Hold(img.Layers)
	if err := again.Sweep(); err != nil || !has() {
		t.Fatalf("layer swept under its holder: %v", err)
	}
	release()
	if has() {
		t.Error("layer stays with nobody holding it")
	}
	second()
}

// TestLostLayer pulls a layer again whose file somebody has deleted.
func TestLostLayer(t *testing.T) {
	s := openStore(t)
	a := tarOf(t, "a", "a")
	img := load(t, s, "img", a)
	s.remove(s.path("layers/" + img.Layers[0]))
	s, err := Open(s.dir, s.log)
	if err != nil {
		t.Fatal(err)
	}
	load(t, s, "img", a)
	if !strings.Contains(files(t, s), img.Layers[0]) {
		t.Error("the layer has not come back")
	}
}

// TestLostRecipe has a layer run on without its recipe, and a load bring it.
func TestLostRecipe(t *testing.T) {
	s := openStore(t)
	a := tarOf(t, "a", "a")
	img := load(t, s, "img", a)
	if err := os.Remove(s.recipePath(img.DiffIDs[0])); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what the first start forgets, the second deletes
		var err error
		if s, err = Open(s.dir, s.log); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get("img"); err != nil || got.Size != img.Size || !strings.Contains(files(t, s), img.Layers[0]) {
			t.Errorf("the layer is lost: %d bytes, %v", got.Size, err)
		}
	}
	if _, err := s.Save([]string{"img"}); err == nil || !strings.Contains(err.Error(), "pull or load") {
		t.Errorf("saved: %v", err)
	}
	load(t, s, "img", a)
	if _, err := os.Stat(s.recipePath(img.DiffIDs[0])); err != nil || s.snapshot().Layers[img.DiffIDs[0]].Tar == 0 {
		t.Errorf("the recipe has not come back: %v", err)
	}
}

func TestSingleReference(t *testing.T) {
	const d = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for refs, want := range map[string]bool{
		"":                         true,
		"h.x/a:1":                  true,
		"h.x/a:1 h.x/a" + d:        true,
		"h.x/a:1 h.x/a:2":          false,
		"h.x/a:1 h.x/b" + d:        false,
		"h.x/a" + d + " h.x/b" + d: false,
	} {
		if got := singleReference(strings.Fields(refs)); got != want {
			t.Errorf("%q: %v", refs, got)
		}
	}
}
