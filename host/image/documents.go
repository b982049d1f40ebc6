package image

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parseManifest reads an image manifest and checks what it claims.
func parseManifest(b []byte) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
	default:
		return nil, errorOf(ErrInvalid, "not a container image: its configuration has the media type %q", m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return nil, errorOf(ErrInvalid, "%d layers: at most %d", len(m.Layers), maxLayers)
	}
	if m.Config.Size < 0 || m.Config.Size > maxDocument {
		return nil, errorOf(ErrInvalid, "configuration of %d bytes: at most %d", m.Config.Size, maxDocument)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest.String()); err != nil {
			return nil, err
		}
		if d.Size < 0 {
			return nil, errorOf(ErrInvalid, "layer of %d bytes", d.Size)
		}
		if len(d.URLs) > 0 {
			return nil, errorOf(ErrInvalid, "layer %s is kept elsewhere than in the registry, which is not supported", d.Digest)
		}
	}
	return &m, nil
}

// parseConfig reads a configuration's diff IDs; there must be one per layer.
func parseConfig(b []byte, layers int) ([]string, error) {
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if c.OS != "" && c.OS != "linux" {
		return nil, errorOf(ErrInvalid, "image operating system %q cannot be used on this platform", c.OS)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("layers from manifest don't match image configuration: %d and %d", layers, len(c.RootFS.DiffIDs))
	}
	if layers > maxLayers {
		return nil, errorOf(ErrInvalid, "%d layers: at most %d", layers, maxLayers)
	}
	ids := make([]string, layers)
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d.String()); err != nil {
			return nil, err
		}
		ids[i] = d.String()
	}
	return ids, nil
}

// checkDigest accepts what can be a file's name in the store.
func checkDigest(s string) error {
	d, err := digest.Parse(s)
	if err != nil {
		return fmt.Errorf("digest %q: %w", s, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return errors.New("digest " + s + ": only sha256 is supported")
	}
	return nil
}

// blobOf is what a manifest says about a layer's compressed form.
func blobOf(d ocispec.Descriptor) blobRecord {
	return blobRecord{Digest: d.Digest.String(), Size: d.Size, MediaType: d.MediaType}
}
