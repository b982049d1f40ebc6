package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// index is the store's list of what it has. A value that others can see is
// never changed, only replaced (see Store.update).
type index struct {
	Version int `json:"version"`
	// Images by ID.
	Images map[string]record `json:"images"`
	// Names to IDs: full references with a tag or a digest.
	Names map[string]string `json:"names"`
	// Layers by diff ID.
	Layers map[string]layerRecord `json:"layers"`
	// Tagged is when an image got its last tag, by ID.
	Tagged map[string]time.Time `json:"tagged,omitempty"`
}

type record struct {
	// Manifest is the digest of the manifest, if the image came with one.
	Manifest string   `json:"manifest,omitempty"`
	DiffIDs  []string `json:"diffIDs"`
}

type layerRecord struct {
	// Size of the files in the layer.
	Size int64 `json:"size"`
	// Tar is the length of the layer's tar. 0: the layer is damaged, or was
	// made by an early build, without a recipe; it is made anew when it
	// comes again.
	Tar int64 `json:"tar,omitempty"`
	// Blobs are the compressed forms in which registries have the layer.
	Blobs []blobRecord `json:"blobs,omitempty"`
}

// blobRecord is a compressed form of a layer.
type blobRecord struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	MediaType string `json:"mediaType"`
	// Head is the digest of the first headSize bytes, by which the
	// compressor is recognised. Optional.
	Head string `json:"head,omitempty"`
	// By names the compressor that gives the beginning. Optional.
	By string `json:"by,omitempty"`
	// Kept says that its bytes are among the blobs, for no compressor of ours
	// gives them.
	Kept bool `json:"kept,omitempty"`
}

const (
	headSize = 64 << 10
	// maxBlobs bounds how many forms of one layer are remembered.
	maxBlobs = 8
)

// know adds a compressed form of a layer.
func (ix *index) know(diffID string, b blobRecord) {
	rec, ok := ix.Layers[diffID]
	if !ok || b.Digest == diffID {
		return
	}
	blobs := slices.Clone(rec.Blobs)
	if i := slices.IndexFunc(blobs, func(o blobRecord) bool { return o.Digest == b.Digest }); i >= 0 {
		if b.Head == "" {
			return
		}
		if blobs[i].Kept {
			b.Kept = true
		}
		if b.By == "" {
			b.By = blobs[i].By
		}
		blobs[i] = b
	} else {
		blobs = append(blobs, b)
		for i := 0; i < len(blobs) && len(blobs) > maxBlobs; {
			if blobs[i].Kept {
				i++
				continue
			}
			blobs = slices.Delete(blobs, i, i+1)
		}
	}
	rec.Blobs = blobs
	ix.Layers[diffID] = rec
}

// unkeep forgets that compressed forms of a layer are kept.
func (ix *index) unkeep(diffID string, digests ...string) {
	rec, ok := ix.Layers[diffID]
	if !ok {
		return
	}
	rec.Blobs = slices.Clone(rec.Blobs)
	for i := range rec.Blobs {
		if slices.Contains(digests, rec.Blobs[i].Digest) {
			rec.Blobs[i].Kept = false
		}
	}
	ix.Layers[diffID] = rec
}

const indexVersion = 1

func newIndex() *index {
	return &index{Version: indexVersion, Images: map[string]record{}, Names: map[string]string{}, Layers: map[string]layerRecord{}, Tagged: map[string]time.Time{}}
}

func (ix *index) clone() *index {
	return &index{Version: ix.Version, Images: maps.Clone(ix.Images), Names: maps.Clone(ix.Names), Layers: maps.Clone(ix.Layers), Tagged: maps.Clone(ix.Tagged)}
}

// usesLayer reports whether an image has the layer.
func (ix *index) usesLayer(diffID string) bool {
	for _, rec := range ix.Images {
		for _, d := range rec.DiffIDs {
			if d == diffID {
				return true
			}
		}
	}
	return false
}

// blobs are the digests of all blobs that images need, and of the compressed
// layers that are kept.
func (ix *index) blobs() map[string]bool {
	m := map[string]bool{}
	for _, rec := range ix.Layers {
		for _, b := range rec.Blobs {
			if b.Kept {
				m[b.Digest] = true
			}
		}
	}
	for id, rec := range ix.Images {
		m[id] = true
		if rec.Manifest != "" {
			m[rec.Manifest] = true
		}
	}
	return m
}

func readIndex(path string) (*index, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newIndex(), nil
	}
	if err != nil {
		return nil, err
	}
	ix := newIndex()
	if err := json.Unmarshal(b, ix); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if ix.Version != indexVersion {
		return nil, fmt.Errorf("%s: version %d, this build knows %d", path, ix.Version, indexVersion)
	}
	return ix, nil
}

// writeFile makes a file appear with its contents, or not at all: tmp is where
// it grows.
func writeFile(tmp, path string, b []byte) error {
	f, err := os.CreateTemp(tmp, "file-")
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return publish(f, path)
}

// publish closes a temporary file and gives it its name, durably. After an
// error it is gone.
func publish(f *os.File, path string) error {
	err := f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
