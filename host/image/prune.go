package image

import (
	"strings"
)

// Unneeded lists what pruning may take of an image: the names to remove one by
// one, or the ID when there are none. Dangling images are those without a tag;
// all: any image. Whether an image is in use is for Remove to say.
func Unneeded(img Image, all bool) []string {
	names := append(append([]string{}, img.Tags...), img.Digests...)
	switch {
	case len(names) == 0:
		return []string{img.ID}
	case all, len(img.Tags) == 0:
		return names
	}
	return nil
}

// LayerSizes are the sizes of the files in all layers of the store, by diff ID.
func (s *Store) LayerSizes() map[string]int64 {
	ix := s.snapshot()
	sizes := make(map[string]int64, len(ix.Layers))
	for diffID, rec := range ix.Layers {
		sizes[diffID] = rec.Size
	}
	return sizes
}

// IsLayer reports whether a step of a removal is that of a layer, and not of
// the image id.
func (r Removed) IsLayer(id string) bool {
	return r.Deleted != "" && r.Deleted != id && strings.HasPrefix(r.Deleted, "sha256:")
}
