package image

import (
	"context"
	"encoding/json"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions of Commit. All fields are optional but Config.
type CommitOptions struct {
	// Name of the new image, with a tag or without.
	Name string
	// Config of its containers, as the Docker API has it: put into the image's
	// configuration as "config".
	Config          any
	Author, Comment string
	// CreatedBy is what made the layer.
	CreatedBy string
}

// Commit makes an image of another and one more layer, a tar with whiteouts.
func (s *Store) Commit(ctx context.Context, base string, tar io.Reader, o CommitOptions) (Image, error) {
	img, err := s.Get(base)
	if err != nil {
		return Image{}, err
	}
	release := s.Hold(img.Layers)
	defer release()
	return s.Build(ctx, Addition{
		Base: img.DiffIDs, Layer: tar, Name: o.Name,
		Config: func(diffIDs []string) ([]byte, error) {
			if len(diffIDs) > maxLayers {
				return nil, errorOf(ErrInvalid, "image of %d layers: at most %d", len(diffIDs), maxLayers)
			}
			return commitConfig(img.RawConfig, diffIDs, o, time.Now().UTC())
		},
	})
}

// commitConfig is a base's configuration with what a commit changes. What else
// the base says is kept, known here or not.
func commitConfig(base []byte, diffIDs []string, o CommitOptions, now time.Time) ([]byte, error) {
	doc := map[string]any{}
	if err := json.Unmarshal(base, &doc); err != nil {
		return nil, err
	}
	var old ocispec.Image
	if err := json.Unmarshal(base, &old); err != nil {
		return nil, err
	}
	for _, stale := range []string{"container", "container_config", "parent", "id"} {
		delete(doc, stale)
	}
	doc["config"], doc["created"] = o.Config, now
	doc["rootfs"] = map[string]any{"type": "layers", "diff_ids": diffIDs}
	doc["history"] = append(old.History, ocispec.History{Created: &now, Author: o.Author, Comment: o.Comment, CreatedBy: o.CreatedBy})
	if o.Author != "" {
		doc["author"] = o.Author
	}
	if o.Comment != "" {
		doc["comment"] = o.Comment
	}
	return json.Marshal(doc)
}
