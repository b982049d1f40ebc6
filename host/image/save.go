package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archive is what `docker save` makes: an OCI layout with uncompressed layers,
// and the lists of older archives beside it. The same images give the same
// bytes.
type Archive struct {
	// Images that it has, in the order they were asked for.
	Images []Image

	s       *Store
	blobs   map[string][]byte // documents by digest
	layers  map[string]int64  // lengths of the tars by diff ID
	index   ocispec.Index
	list    []savedImage
	legacy  map[string]map[string]string // repository and tag to the top layer
	release func()
}

// savedImage is an entry of manifest.json.
type savedImage struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[string]ocispec.Descriptor `json:",omitempty"`
}

// Save prepares an archive of images: by a name with a tag, by the name of a
// repository (all its tags), or by ID or digest (no tags). Close lets go of
// them.
func (s *Store) Save(refs []string) (*Archive, error) {
	ix := s.snapshot()
	var order []string
	names := map[string][]string{}
	for _, ref := range refs {
		id, tags, err := ix.selectSaved(ref)
		if err != nil {
			return nil, err
		}
		for i := range id {
			if _, ok := names[id[i]]; !ok {
				order = append(order, id[i])
				names[id[i]] = nil
			}
			if tags[i] != "" && !slices.Contains(names[id[i]], tags[i]) {
				names[id[i]] = append(names[id[i]], tags[i])
			}
		}
	}
	a := &Archive{s: s, blobs: map[string][]byte{}, layers: map[string]int64{}, legacy: map[string]map[string]string{}}
	a.index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	var layers []string
	for _, id := range order {
		img, err := s.image(ix, id)
		if err != nil {
			return nil, err
		}
		a.Images = append(a.Images, img)
		layers = append(layers, img.Layers...)
	}
	a.release = s.Hold(layers)
	for _, img := range a.Images {
		if err := a.add(ix, img, names[img.ID]); err != nil {
			a.release()
			return nil, err
		}
	}
	return a, nil
}

// selectSaved finds the images that ref means, and the tag that each is saved
// with, if any.
func (ix *index) selectSaved(ref string) (ids, tags []string, err error) {
	if id, ok := ix.byID(ref); ok && len(hexOf(ref)) == 64 {
		return []string{id}, []string{""}, nil
	}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		for _, full := range slices.Sorted(maps.Keys(ix.Names)) {
			if repository(full) == named.Name() && !strings.Contains(full, "@") {
				ids, tags = append(ids, ix.Names[full]), append(tags, full)
			}
		}
		if len(ids) > 0 {
			return ids, tags, nil
		}
	}
	id, err := ix.resolve(ref)
	if err != nil {
		return nil, nil, err
	}
	if named, err := parseName(ref); err == nil && ix.Names[named.String()] == id {
		if _, ok := named.(reference.Tagged); ok {
			return []string{id}, []string{named.String()}, nil
		}
	}
	return []string{id}, []string{""}, nil
}

// Close lets go of the images.
func (a *Archive) Close() { a.release() }

func blobName(digest string) string { return "blobs/sha256/" + hexOf(digest) }

// add lists an image.
func (a *Archive) add(ix *index, img Image, names []string) error {
	entry := savedImage{Config: blobName(img.ID), Layers: []string{}, LayerSources: map[string]ocispec.Descriptor{}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{},
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.Digest(img.ID), Size: int64(len(img.RawConfig))}}
	for _, diffID := range img.DiffIDs {
		rec := ix.Layers[diffID]
		if rec.Tar == 0 {
			r, err := a.s.layerTar(diffID) // says why there is none
			if err == nil {
				r.Close()
			}
			return fmt.Errorf("save image %s: %w", short(img.ID), err)
		}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.Digest(diffID), Size: rec.Tar}
		a.layers[diffID] = rec.Tar
		m.Layers = append(m.Layers, d)
		entry.Layers = append(entry.Layers, blobName(diffID))
		entry.LayerSources[diffID] = d
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	a.blobs[img.ID] = img.RawConfig
	a.blobs[digestOf(manifest)] = manifest
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(digestOf(manifest)), Size: int64(len(manifest))}
	if len(names) == 0 {
		a.index.Manifests = append(a.index.Manifests, d)
	}
	for _, full := range names {
		named, err := reference.ParseNormalizedNamed(full)
		if err != nil {
			return err
		}
		repo, tag := reference.FamiliarName(named), label(named)
		entry.RepoTags = append(entry.RepoTags, familiar(full))
		d.Annotations = map[string]string{annotationName: full, annotationRef: tag}
		a.index.Manifests = append(a.index.Manifests, d)
		if n := len(img.DiffIDs); n > 0 {
			if a.legacy[repo] == nil {
				a.legacy[repo] = map[string]string{}
			}
			a.legacy[repo][tag] = hexOf(img.DiffIDs[n-1])
		}
	}
	a.list = append(a.list, entry)
	return nil
}

// Write sends the archive. Layers are made again on the way and verified: after
// damage on disk there is an error, and no end of the archive.
func (a *Archive) Write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	dirs := []string{"blobs/", "blobs/sha256/"}
	for _, name := range dirs {
		if err := tw.WriteHeader(savedHeader(name, tar.TypeDir, 0o755, 0)); err != nil {
			return err
		}
	}
	digests := slices.Concat(slices.Collect(maps.Keys(a.blobs)), slices.Collect(maps.Keys(a.layers)))
	slices.Sort(digests)
	for _, d := range slices.Compact(digests) {
		if b, ok := a.blobs[d]; ok {
			if err := saveBytes(tw, blobName(d), b); err != nil {
				return err
			}
			continue
		}
		if err := a.writeLayer(ctx, tw, d); err != nil {
			return fmt.Errorf("save layer %s: %w", short(d), err)
		}
	}
	for _, doc := range []struct {
		name string
		v    any
		skip bool
	}{
		{"index.json", a.index, false},
		{"manifest.json", a.list, false},
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}, false},
		{"repositories", a.legacy, len(a.legacy) == 0},
	} {
		if doc.skip {
			continue
		}
		b, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if doc.name == "repositories" {
			b = append(b, '\n')
		}
		if err := saveBytes(tw, doc.name, b); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (a *Archive) writeLayer(ctx context.Context, tw *tar.Writer, diffID string) error {
	r, err := a.s.layerTar(diffID)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := tw.WriteHeader(savedHeader(blobName(diffID), tar.TypeReg, 0o644, a.layers[diffID])); err != nil {
		return err
	}
	n, err := io.Copy(tw, withContext{ctx, r})
	if err == nil && n != a.layers[diffID] {
		err = fmt.Errorf("%d bytes, not %d", n, a.layers[diffID])
	}
	return err
}

func saveBytes(tw *tar.Writer, name string, b []byte) error {
	if err := tw.WriteHeader(savedHeader(name, tar.TypeReg, 0o644, int64(len(b)))); err != nil {
		return err
	}
	_, err := io.Copy(tw, bytes.NewReader(b))
	return err
}

// savedHeader has no time, so that the same images give the same archive.
func savedHeader(name string, typ byte, mode, size int64) *tar.Header {
	if typ == tar.TypeReg {
		name = path.Clean(name)
	}
	return &tar.Header{Name: name, Typeflag: typ, Mode: mode, Size: size, ModTime: time.Unix(0, 0)}
}
