package image

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// Addition describes an image that Build makes.
type Addition struct {
	// Base are the diff IDs of the layers below, which the caller holds or
	// an image has. Optional.
	Base []string
	// Layer is the tar of one more layer, compressed or not. Optional.
	Layer io.Reader
	// Config makes the configuration for the layers' diff IDs. Required.
	Config func(diffIDs []string) ([]byte, error)
	// Name that the image gets, with a tag or none. Optional.
	Name string
}

// Build stores an image that was made here: by import, or from a container.
// Cancelling ctx ends it; then, and after any error, the store is as before.
func (s *Store) Build(ctx context.Context, a Addition) (Image, error) {
	var names []string
	if a.Name != "" {
		name, err := parseTag(a.Name)
		if err != nil {
			return Image{}, err
		}
		names = append(names, name)
	}
	diffIDs := slices.Clone(a.Base)
	if a.Layer != nil {
		src := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(a.Layer), nil }
		diffID, release, err := s.addLayer(ctx, src)
		if err != nil {
			return Image{}, fmt.Errorf("layer: %w", err)
		}
		defer release()
		diffIDs = append(diffIDs, diffID)
	}
	config, err := a.Config(diffIDs)
	if err != nil {
		return Image{}, err
	}
	if len(config) > maxDocument {
		return Image{}, errorOf(ErrInvalid, "configuration of %d bytes: at most %d", len(config), maxDocument)
	}
	if got, err := parseConfig(config, len(diffIDs)); err != nil {
		return Image{}, fmt.Errorf("configuration: %w", err)
	} else if !slices.Equal(got, diffIDs) {
		return Image{}, fmt.Errorf("configuration has the layers %q, not %q", got, diffIDs)
	}
	return s.add(config, nil, diffIDs, names)
}
