package image

import (
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// FuzzDocuments: what is accepted of a manifest and a configuration can be a
// file's name, has no negative sizes and no more layers than we stack.
func FuzzDocuments(f *testing.F) {
	hex := strings.Repeat("ab", 32)
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:`+hex+`","size":3},"layers":[{"digest":"sha256:`+hex+`","size":1}]}`), []byte(`{"os":"linux","rootfs":{"diff_ids":["sha256:`+hex+`"]}}`))
	f.Add([]byte(`{"config":{"digest":"sha256:../../x"}}`), []byte(`{"rootfs":{"diff_ids":["sha512:`+hex+hex+`"]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		if m, err := parseManifest(manifest); err == nil {
			if len(m.Layers) > maxLayers || m.Config.Size < 0 {
				t.Fatalf("%d layers, configuration of %d bytes", len(m.Layers), m.Config.Size)
			}
			for _, l := range m.Layers {
				if l.Size < 0 || len(hexOf(l.Digest.String())) != 64 {
					t.Fatalf("layer %s of %d bytes", l.Digest, l.Size)
				}
			}
			if raw, err := settle(m, manifest, make([]blobRecord, len(m.Layers))); err == nil && len(m.Layers) == 0 && string(raw) != string(manifest) {
				t.Fatal("a manifest whose layers stay has changed")
			}
		}
		for _, n := range []int{0, 1, 2} {
			ids, err := parseConfig(config, n)
			if err != nil {
				continue
			}
			for _, id := range ids {
				if name := layerName(id); len(name) != 64+len(".erofs") || strings.ContainsAny(name, "/\x00") {
					t.Fatalf("layer named %q", name)
				}
			}
		}
		if index, err := v1.ParseIndexManifest(strings.NewReader(string(manifest))); err == nil {
			if _, err := choose(index.Manifests, PullOptions{}.platform()); err != nil && len(err.Error()) > 1000 {
				t.Fatal("a very long error")
			}
		}
	})
}

// FuzzNames: a name that is accepted is found again as it was given, and a tag
// never has a digest.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:1", "localhost:5000/x@sha256:" + strings.Repeat("0", 64), "sha256:ab", "../x", "x:y@z", "UPPER/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ix := newIndex()
		if named, err := parseName(s); err == nil {
			ix.Names[named.String()] = "sha256:" + strings.Repeat("1", 64)
			ix.Images[ix.Names[named.String()]] = record{}
			if id, err := ix.resolve(s); err != nil || id != ix.Names[named.String()] {
				t.Fatalf("%q: found %q, %v", s, id, err)
			}
		} else if id, err := ix.resolve(s); err == nil {
			t.Fatalf("%q: found %s in an empty store", s, id)
		}
		if full, err := parseTag(s); err == nil && strings.Contains(full, "@") {
			t.Fatalf("%q became the tag %q", s, full)
		}
		if _, _, err := ix.selectSaved(s); err != nil && len(err.Error()) > len(s)+200 {
			t.Fatal("a very long error")
		}
	})
}
