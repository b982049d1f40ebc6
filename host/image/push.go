package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushOptions of Store.Push. All are optional.
type PushOptions struct {
	// Platform that the image must have.
	Platform *ocispec.Platform
	// Auth and Transport as in PullOptions.
	Auth      authn.Authenticator
	Transport http.RoundTripper
}

// Pushed is what a registry has now.
type Pushed struct {
	Tag, Digest string
	Size        int64 // of the manifest
}

// Push sends an image to the registry of its name: that with its tag, or, given
// the name of a repository, all its tags.
//
// The registry gets the very bytes that were pulled where that can be: a layer
// that it has, in this repository or another, isn't sent; others were kept, or
// are made again by the compressor that is recognised by how they begin. If all
// of them are the same, so is the manifest. A layer whose compressor is unknown
// and which wasn't kept is sent as Docker would compress it, which is the same
// whenever it is pushed.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions, progress func(Progress), pushed func(Pushed)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return &classed{text: "invalid reference format", class: ErrInvalid, cause: err}
	}
	if _, ok := named.(reference.Digested); ok {
		return errorOf(ErrInvalid, "cannot push a digest reference")
	}
	tell := teller(progress)
	tell(Progress{Status: fmt.Sprintf("The push refers to repository [%s]", named.Name())})
	ix := s.snapshot()
	var tags []string
	for _, full := range slices.Sorted(maps.Keys(ix.Names)) {
		if full == named.String() || reference.IsNameOnly(named) && repository(full) == named.Name() && !strings.Contains(full, "@") {
			tags = append(tags, full)
		}
	}
	if len(tags) == 0 && slices.ContainsFunc(slices.Collect(maps.Keys(ix.Names)), func(full string) bool { return repository(full) == named.Name() }) {
		return errorOf(ErrNotFound, "tag does not exist: %s", reference.FamiliarString(named))
	}
	if len(tags) == 0 {
		return errorOf(ErrNotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	for _, full := range tags {
		to, err := reference.ParseNormalizedNamed(full)
		if err != nil {
			return err
		}
		img, err := s.image(ix, ix.Names[full])
		if err != nil {
			return err
		}
		if err := o.check(img, to); err != nil {
			return err
		}
		p := &pushing{s: s, img: img, to: to, o: o, tell: tell}
		if err := p.run(ctx, pushed); err != nil {
			return err
		}
	}
	return nil
}

func (o PushOptions) check(img Image, named reference.Named) error {
	if o.Platform == nil {
		return nil
	}
	have := img.Config.Platform
	if have.OS != o.Platform.OS || have.Architecture != o.Platform.Architecture || o.Platform.Variant != "" && variant(have.Architecture, have.Variant) != o.Platform.Variant {
		return errorOf(ErrNotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			reference.FamiliarString(named), platformString(have), platformString(*o.Platform))
	}
	return nil
}

// pushing is the sending of one image under one name.
type pushing struct {
	s    *Store
	img  Image
	to   reference.Named
	o    PushOptions
	tell func(Progress)

	repo    name.Repository
	options []remote.Option
}

func (p *pushing) run(ctx context.Context, pushed func(Pushed)) error {
	ref, options, err := p.s.target(ctx, p.to, reference.Domain(p.to), p.o.Auth, p.o.Transport)
	if err != nil {
		return err
	}
	p.repo, p.options = ref.Context(), options
	release := p.s.Hold(p.img.Layers)
	defer release()

	m, raw, err := p.manifest()
	if err != nil {
		return err
	}
	blobs, err := p.layers(ctx, m)
	if err != nil {
		return p.error(err)
	}
	config := &pushedLayer{digest: hashOf(p.img.ID), size: int64(len(p.img.RawConfig)), mediaType: m.Config.MediaType,
		open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p.img.RawConfig)), nil }}
	if err := remote.WriteLayer(p.repo, config, p.options...); err != nil {
		return p.error(err)
	}
	if raw, err = settle(m, raw, blobs); err != nil {
		return err
	}
	if err := remote.Put(ref, document{raw, types.MediaType(m.MediaType)}, p.options...); err != nil {
		return p.error(err)
	}
	done := Pushed{Tag: label(p.to), Digest: digestOf(raw), Size: int64(len(raw))}
	if err := p.remember(raw, done.Digest, blobs); err != nil {
		return err
	}
	p.tell(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", done.Tag, done.Digest, done.Size)})
	if pushed != nil {
		pushed(done)
	}
	return nil
}

// manifest is what the image came with, or the beginning of Docker's.
func (p *pushing) manifest() (*ocispec.Manifest, []byte, error) {
	raw, err := p.s.Manifest(p.img.ID)
	if err != nil {
		return nil, nil, err
	}
	if raw == nil {
		m := &ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerManifest,
			Config: ocispec.Descriptor{MediaType: dockerConfig, Digest: digest.Digest(p.img.ID), Size: int64(len(p.img.RawConfig))},
			Layers: make([]ocispec.Descriptor, len(p.img.DiffIDs))}
		return m, nil, nil
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("manifest of image %s: %w", short(p.img.ID), err)
	}
	if m.MediaType == "" {
		m.MediaType = ocispec.MediaTypeImageManifest
	}
	return m, raw, nil
}

// settle enters the layers into the manifest. If nothing changes, its bytes
// stay what they are.
func settle(m *ocispec.Manifest, raw []byte, blobs []blobRecord) ([]byte, error) {
	same := raw != nil
	for i, b := range blobs {
		d := &m.Layers[i]
		if d.Digest.String() == b.Digest {
			continue
		}
		same = false
		d.Digest, d.Size, d.MediaType = digest.Digest(b.Digest), b.Size, b.MediaType
	}
	if same {
		return raw, nil
	}
	return json.MarshalIndent(m, "", "   ") // as Docker writes it
}

// layers brings all layers to the registry, from the top down as Docker does.
func (p *pushing) layers(ctx context.Context, m *ocispec.Manifest) ([]blobRecord, error) {
	blobs := make([]blobRecord, len(p.img.DiffIDs))
	for i := len(blobs) - 1; i >= 0; i-- {
		p.tell(Progress{ID: short(p.img.DiffIDs[i]), Status: "Preparing"})
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	first := map[string]int{}
	for i := len(blobs) - 1; i >= 0; i-- {
		diffID := p.img.DiffIDs[i]
		if _, twice := first[diffID]; twice && m.Layers[i].Digest == m.Layers[first[diffID]].Digest {
			continue
		}
		first[diffID] = i
		if len(blobs)-i > parallel {
			p.tell(Progress{ID: short(diffID), Status: "Waiting"})
		}
		g.Go(func() error {
			b, err := p.layer(ctx, diffID, m.Layers[i], m.MediaType)
			if err != nil {
				return fmt.Errorf("layer %s: %w", short(diffID), err)
			}
			blobs[i] = b
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range blobs {
		if blobs[i].Digest == "" {
			blobs[i] = blobs[first[p.img.DiffIDs[i]]]
		}
	}
	return blobs, nil
}

// layer brings one layer to the registry, in the first of the forms that can be
// had: that of the manifest, one that the registry has, Docker's own.
func (p *pushing) layer(ctx context.Context, diffID string, d ocispec.Descriptor, manifestType string) (blobRecord, error) {
	var forms []blobRecord
	if d.Digest != "" {
		forms = append(forms, blobOf(d))
	}
	for _, b := range p.s.snapshot().Layers[diffID].Blobs {
		switch {
		case b.Digest == d.Digest.String():
			b.MediaType = d.MediaType
			forms[0] = b
		case b.MediaType == ocispec.MediaTypeImageLayerGzip, b.MediaType == dockerLayerGzip:
			b.MediaType = gzipType(manifestType)
			forms = append(forms, b)
		}
	}
	for i, b := range forms {
		if i > 0 && d.Digest != "" && !b.Kept {
			if have, err := p.has(b.Digest); err != nil {
				return b, err
			} else if !have {
				continue // the exact bytes are lost: any form will do, but not another guess
			}
		}
		err := p.send(ctx, diffID, b, nil)
		if err == nil || !errors.Is(err, errOther) {
			return b, err
		}
	}
	file, err := p.s.compress(ctx, diffID, dockerGzip(), gzipType(manifestType))
	if err != nil {
		return blobRecord{}, err
	}
	defer file.remove()
	return file.blob, p.send(ctx, diffID, file.blob, file)
}

// has reports whether the repository has a blob.
func (p *pushing) has(digest string) (bool, error) {
	l, err := remote.Layer(p.repo.Digest(digest), p.options...)
	if err != nil {
		return false, err
	}
	return partial.Exists(l)
}

// send brings a form of a layer to the registry; without a file it is made when
// the registry wants it, or errOther is returned.
func (p *pushing) send(ctx context.Context, diffID string, b blobRecord, file *blobFile) error {
	id := short(diffID)
	have, err := p.has(b.Digest)
	if err != nil {
		return err
	}
	if have {
		p.tell(Progress{ID: id, Status: "Layer already exists"})
		return nil
	}
	var opened atomic.Bool
	made := file
	defer func() {
		if made != nil && made != file {
			made.remove()
		}
	}()
	open := func() (io.ReadCloser, error) {
		opened.Store(true)
		var r io.ReadCloser
		var err error
		switch {
		case made != nil:
			r, err = os.Open(made.path)
		case b.Digest == diffID:
			r, err = p.s.layerTar(diffID)
		case b.Kept:
			r, err = os.Open(p.s.blobPath(b.Digest))
		default:
			if made, err = p.s.reproduce(ctx, diffID, b); err == nil {
				r, err = os.Open(made.path)
			}
		}
		if err != nil {
			return nil, err
		}
		c := &counter{r: withContext{ctx, r}, progress: func(n int64) {
			p.tell(Progress{ID: id, Status: "Pushing", Current: n, Total: b.Size})
		}}
		return &download{Reader: c, Closer: r}, nil
	}
	layer := v1.Layer(&pushedLayer{digest: hashOf(b.Digest), diffID: hashOf(diffID), size: b.Size, mediaType: b.MediaType, open: open})
	from := p.elsewhere(b.Digest)
	if from != nil {
		layer = &remote.MountableLayer{Layer: layer, Reference: from}
	}
	if err := remote.WriteLayer(p.repo, layer, p.options...); err != nil {
		return err
	}
	if from != nil && !opened.Load() {
		p.tell(Progress{ID: id, Status: "Mounted from " + from.Context().RepositoryStr()})
	} else {
		p.tell(Progress{ID: id, Status: "Pushed"})
	}
	return nil
}

// elsewhere finds another repository of the registry that should have a blob:
// one from which, or to which, an image with it was pulled or pushed.
func (p *pushing) elsewhere(digest string) name.Reference {
	ix := p.s.snapshot()
	for _, full := range slices.Sorted(maps.Keys(ix.Names)) {
		named, err := reference.ParseNormalizedNamed(full)
		if err != nil || named.Name() == p.to.Name() || reference.Domain(named) != reference.Domain(p.to) {
			continue
		}
		if _, ok := named.(reference.Canonical); !ok {
			continue // a tag alone may never have been anywhere
		}
		for _, diffID := range ix.Images[ix.Names[full]].DiffIDs {
			if slices.ContainsFunc(ix.Layers[diffID].Blobs, func(b blobRecord) bool { return b.Digest == digest }) {
				return p.repo.Registry.Repo(strings.Split(reference.Path(named), "/")...).Digest(digest)
			}
		}
	}
	return nil
}

// remember keeps what the registry has, for the next push.
func (p *pushing) remember(manifest []byte, digest string, blobs []blobRecord) error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.ix.Images[p.img.ID]
	if !ok {
		return nil // it was removed meanwhile
	}
	if rec.Manifest == "" {
		if err := writeFile(s.tmp(), s.blobPath(digest), manifest); err != nil {
			return fmt.Errorf("store manifest: %w", err)
		}
	}
	return s.updateLocked(func(ix *index) error {
		if rec.Manifest == "" {
			rec.Manifest = digest
			ix.Images[p.img.ID] = rec
		}
		ix.Names[p.to.Name()+"@"+digest] = p.img.ID
		for i, b := range blobs {
			ix.know(p.img.DiffIDs[i], b)
		}
		return nil
	})
}

// error puts a registry's answer into Docker's words.
func (p *pushing) error(err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		text, class := http.StatusText(te.StatusCode), error(nil)
		if len(te.Errors) > 0 {
			text = strings.ToLower(strings.ReplaceAll(string(te.Errors[0].Code), "_", " ")) + ": " + te.Errors[0].Message
		}
		switch te.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			class = ErrDenied
			if len(te.Errors) == 0 {
				text = "unauthorized: authentication required"
			}
			return &classed{text: text, class: class, cause: err}
		}
	}
	return fmt.Errorf("push %s: %w", reference.FamiliarString(p.to), err)
}

// pushedLayer is a blob in the words of the registry client.
type pushedLayer struct {
	digest, diffID v1.Hash
	size           int64
	mediaType      string
	open           func() (io.ReadCloser, error)
}

func (l *pushedLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *pushedLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *pushedLayer) Size() (int64, error)                { return l.size, nil }
func (l *pushedLayer) MediaType() (types.MediaType, error) { return types.MediaType(l.mediaType), nil }
func (l *pushedLayer) Compressed() (io.ReadCloser, error)  { return l.open() }
func (l *pushedLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("nobody asks for a pushed layer's tar")
}

// document is a manifest in the words of the registry client.
type document struct {
	raw       []byte
	mediaType types.MediaType
}

func (d document) RawManifest() ([]byte, error)        { return d.raw, nil }
func (d document) MediaType() (types.MediaType, error) { return d.mediaType, nil }

func hashOf(digest string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hexOf(digest)} }
