package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// archived is an image of an archive.
type archived struct {
	config, manifest []byte
	diffIDs          []string
	layers           []spooled
	blobs            []blobRecord // as the layers are; empty when not known
	names            []string     // full, with tags
}

// Load stores the images of an archive: docker save's, old and new, or an OCI
// layout, uncompressed or in gzip or zstd. It returns what was loaded, names or
// else IDs. Of an archive with a fault nothing is kept.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) (loaded []string, err error) {
	tell := teller(progress)
	sp, err := s.newSpool(ctx, r)
	if err != nil {
		return nil, err
	}
	defer sp.close()
	var images []archived
	switch {
	case sp.has("manifest.json"):
		images, err = sp.docker()
	case sp.has("index.json"):
		images, err = sp.oci()
	default:
		err = errorOf(ErrInvalid, "archive has neither a manifest.json (docker save) nor an index.json (OCI layout)")
	}
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	var layers []string
	for _, img := range images {
		for _, diffID := range img.diffIDs {
			layers = append(layers, layerName(diffID))
		}
	}
	release := s.Hold(layers)
	defer release()
	if err := s.loadLayers(ctx, images, tell); err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	for _, img := range images {
		got, err := s.add(img.config, img.manifest, img.diffIDs, img.names)
		if err != nil {
			return loaded, fmt.Errorf("load image: %w", err)
		}
		for _, name := range img.names {
			loaded = append(loaded, familiar(name))
		}
		if len(img.names) == 0 {
			loaded = append(loaded, got.ID)
		}
	}
	return loaded, nil
}

func (s *Store) loadLayers(ctx context.Context, images []archived, tell func(Progress)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(parallel, runtime.GOMAXPROCS(0)))
	seen := map[string]bool{}
	for _, img := range images {
		for i, diffID := range img.diffIDs {
			if seen[diffID] {
				continue
			}
			seen[diffID] = true
			file, id := img.layers[i], short(diffID)
			var blob *blobRecord
			if len(img.blobs) > 0 {
				blob = &img.blobs[i]
			}
			g.Go(func() error {
				src := func(context.Context) (io.ReadCloser, error) {
					f, err := os.Open(file.path)
					if err != nil {
						return nil, err
					}
					c := &counter{r: f, progress: func(n int64) {
						tell(Progress{ID: id, Status: "Loading layer", Current: n, Total: file.size})
					}}
					return &download{Reader: c, Closer: f}, nil
				}
				if err := s.ensureLayer(ctx, diffID, src, blob, func() {}); err != nil {
					return fmt.Errorf("layer %s: %w", id, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// docker reads the list of docker save.
func (sp *spool) docker() ([]archived, error) {
	b, err := sp.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	var images []archived
	for _, m := range list {
		var img archived
		if img.config, err = sp.document(m.Config); err != nil {
			return nil, err
		}
		if img.diffIDs, err = parseConfig(img.config, len(m.Layers)); err != nil {
			return nil, fmt.Errorf("%q in the archive: %w", m.Config, err)
		}
		for _, name := range m.Layers {
			f, err := sp.lookup(name)
			if err != nil {
				return nil, err
			}
			img.layers = append(img.layers, f)
		}
		for _, tag := range m.RepoTags {
			name, err := parseTag(tag)
			if err != nil {
				return nil, fmt.Errorf("tag %q in the archive: %w", tag, err)
			}
			img.names = append(img.names, name)
		}
		images = append(images, img)
	}
	return images, nil
}

// Annotations that name an image in an OCI layout; the second is containerd's.
const (
	annotationRef  = ocispec.AnnotationRefName
	annotationName = "io.containerd.image.name"
)

// oci reads the index of an OCI layout.
func (sp *spool) oci() ([]archived, error) {
	b, err := sp.document("index.json")
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) > maxLayers {
		return nil, errorOf(ErrInvalid, "archive of %d images: at most %d", len(index.Manifests), maxLayers)
	}
	byID := map[string]int{}
	var images []archived
	for _, d := range index.Manifests {
		img, err := sp.ociImage(d)
		if err != nil {
			return nil, err
		}
		id := digestOf(img.config)
		if i, ok := byID[id]; ok { // one more name
			images[i].names = append(images[i].names, img.names...)
			continue
		}
		byID[id] = len(images)
		images = append(images, img)
	}
	return images, nil
}

func (sp *spool) ociImage(d v1.Descriptor) (archived, error) {
	var img archived
	digest := d.Digest
	b, err := sp.blob(digest.String())
	if err != nil {
		return img, err
	}
	if d.MediaType == types.OCIImageIndex || d.MediaType == types.DockerManifestList {
		var index v1.IndexManifest
		if err := json.Unmarshal(b, &index); err != nil {
			return img, fmt.Errorf("image index %s: %w", digest, err)
		}
		if digest, err = choose(index.Manifests, PullOptions{}.platform()); err != nil {
			return img, err
		}
		if b, err = sp.blob(digest.String()); err != nil {
			return img, err
		}
	}
	m, err := parseManifest(b)
	if err != nil {
		return img, fmt.Errorf("manifest %s: %w", digest, err)
	}
	img.manifest = b
	if img.config, err = sp.blob(m.Config.Digest.String()); err != nil {
		return img, err
	}
	if img.diffIDs, err = parseConfig(img.config, len(m.Layers)); err != nil {
		return img, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	for _, l := range m.Layers {
		f, err := sp.lookup("blobs/sha256/" + hexOf(l.Digest.String()))
		if err != nil {
			return img, err
		}
		if f.size != l.Size {
			return img, fmt.Errorf("layer %s has %d bytes, not %d", l.Digest, f.size, l.Size)
		}
		img.layers = append(img.layers, f)
		img.blobs = append(img.blobs, blobOf(l))
	}
	img.names = ociNames(d.Annotations)
	return img, nil
}

// ociNames are the names that annotations give. A reference without a
// repository, a mere tag, names nothing.
func ociNames(annotations map[string]string) []string {
	for _, key := range []string{annotationName, annotationRef} {
		named, err := reference.ParseNormalizedNamed(annotations[key])
		if err != nil {
			continue
		}
		if _, tagged := named.(reference.Tagged); !tagged && key == annotationRef {
			continue
		}
		if name, err := parseTag(annotations[key]); err == nil {
			return []string{name}
		}
	}
	return nil
}
