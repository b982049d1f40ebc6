package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PullOptions of Store.Pull. All are optional.
type PullOptions struct {
	// Platform of the image. Default: Linux on this machine's architecture.
	Platform *ocispec.Platform
	// Auth is shown to the registry. Default: what Docker's configuration
	// and its credential helpers have for it.
	Auth authn.Authenticator
	// Transport carries the requests, in tests. Default: TLS by the system's
	// certificates and what Registries say, proxies by the environment.
	Transport http.RoundTripper
}

func (o PullOptions) platform() ocispec.Platform {
	if o.Platform != nil && o.Platform.Architecture != "" {
		p := *o.Platform
		if p.OS == "" {
			p.OS = "linux"
		}
		return p
	}
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// Pull brings an image from its registry: plain HTTP for registries on this
// machine, TLS for all others. Layers that are present are not transferred.
// Cancelling ctx ends it; then, and after any error, the store is as before.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions, progress func(Progress)) (Image, error) {
	named, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	tell := teller(progress)
	f, err := s.find(ctx, named, o)
	if err != nil {
		return Image{}, err
	}
	tell(Progress{ID: label(named), Status: "Pulling from " + reference.Path(named)})

	layers := make([]string, len(f.diffIDs))
	for i, diffID := range f.diffIDs {
		layers[i] = layerName(diffID)
	}
	release := s.Hold(layers)
	defer release()
	if err := s.pullLayers(ctx, f, tell); err != nil {
		return Image{}, err
	}

	names := []string{named.Name() + "@" + f.digest}
	if _, ok := named.(reference.Canonical); !ok {
		names = append(names, named.String())
	}
	status := "Downloaded newer image for "
	if id, ok := s.snapshot().Names[named.String()]; ok && id == digestOf(f.config) {
		status = "Image is up to date for "
	}
	img, err := s.add(f.config, f.manifest, f.diffIDs, names)
	if err != nil {
		return Image{}, err
	}
	tell(Progress{Status: "Digest: " + f.digest})
	tell(Progress{Status: "Status: " + status + reference.FamiliarString(named)})
	return img, nil
}

// Tags lists the tags of a repository at its registry, as full names.
func (s *Store) Tags(ctx context.Context, ref string, o PullOptions) ([]string, error) {
	named, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	at, options, err := s.target(ctx, named, reference.Domain(named), o.Auth, o.Transport)
	if err != nil {
		return nil, err
	}
	tags, err := remote.List(at.Context(), options...)
	if err != nil {
		return nil, registryError(named, err)
	}
	var refs []string
	for _, tag := range tags {
		tagged, err := reference.WithTag(reference.TrimNamed(named), tag)
		if err != nil {
			return nil, fmt.Errorf("tag %q of %s: %w", tag, reference.FamiliarName(named), err)
		}
		refs = append(refs, tagged.String())
	}
	return refs, nil
}

// label is the tag, or the digest, that a pull is shown with.
func label(named reference.Named) string {
	switch n := named.(type) {
	case reference.Canonical:
		return n.Digest().String()
	case reference.Tagged:
		return n.Tag()
	}
	return ""
}

func (s *Store) pullLayers(ctx context.Context, f *found, tell func(Progress)) error {
	for _, l := range f.layers {
		tell(Progress{ID: short(l.Digest.String()), Status: "Pulling fs layer"})
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	seen := map[string]bool{}
	for i, l := range f.layers {
		diffID := f.diffIDs[i]
		id := short(l.Digest.String())
		if seen[diffID] {
			tell(Progress{ID: id, Status: "Already exists"})
			continue
		}
		seen[diffID] = true
		if i >= parallel {
			tell(Progress{ID: id, Status: "Waiting"})
		}
		g.Go(func() error {
			present := false
			err := s.ensureLayer(ctx, diffID, f.source(l, id, tell), new(blobOf(l)), func() { present = true })
			switch {
			case err != nil:
				return fmt.Errorf("layer %s: %w", id, err)
			case present:
				tell(Progress{ID: id, Status: "Already exists"})
			default:
				tell(Progress{ID: id, Status: "Pull complete"})
			}
			return nil
		})
	}
	return g.Wait()
}

// retryingIn tells of a wait, in Docker's words.
func retryingIn(wait time.Duration) string {
	n := max(1, int(wait.Round(time.Second)/time.Second))
	if n == 1 {
		return "Retrying in 1 second"
	}
	return fmt.Sprintf("Retrying in %d seconds", n)
}

// source downloads a layer; size and digest are verified.
func (f *found) source(l ocispec.Descriptor, id string, tell func(Progress)) source {
	return func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := f.blobs.blob(ctx, l, func(wait time.Duration) {
			tell(Progress{ID: id, Status: retryingIn(wait)})
		})
		if err != nil {
			return nil, err
		}
		c := &counter{r: rc, progress: func(n int64) {
			tell(Progress{ID: id, Status: "Downloading", Current: n, Total: l.Size})
		}}
		return &download{Reader: c, Closer: rc, end: func() {
			tell(Progress{ID: id, Status: "Verifying Checksum"})
			tell(Progress{ID: id, Status: "Download complete"})
			tell(Progress{ID: id, Status: "Extracting", Current: l.Size, Total: l.Size})
		}}, nil
	}
}

// download tells when a stream has ended well.
type download struct {
	io.Reader
	io.Closer
	end func()
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err == io.EOF && d.end != nil {
		d.end()
		d.end = nil
	}
	return n, err
}
