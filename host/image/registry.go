package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// found is an image of a registry, of which only documents were read yet.
type found struct {
	// digest of what the name stands for: of the index, if it is one.
	digest   string
	manifest []byte
	config   []byte
	diffIDs  []string
	layers   []ocispec.Descriptor
	blobs    *fetcher
}

// find resolves a name at a mirror of its registry, or at the registry.
func (s *Store) find(ctx context.Context, named reference.Named, o PullOptions) (*found, error) {
	for _, m := range s.registries.Hosts[reference.Domain(named)].Mirrors {
		u, err := url.Parse(m)
		if err != nil {
			return nil, err
		}
		// What the registry may see of us is not for its mirrors.
		f, err := s.findAt(ctx, named, u.Host, PullOptions{Platform: o.Platform, Transport: o.Transport})
		if err == nil {
			return f, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.log.Info("mirror has not the image", "mirror", m, "image", named.String(), "error", err)
	}
	return s.findAt(ctx, named, reference.Domain(named), o)
}

func (s *Store) findAt(ctx context.Context, named reference.Named, host string, o PullOptions) (*found, error) {
	ref, options, err := s.target(ctx, named, host, o.Auth, o.Transport)
	if err != nil {
		return nil, err
	}
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return nil, err
	}
	options = append(options, remote.Reuse(puller)) // its tokens
	desc, err := remote.Get(ref, options...)
	if err != nil {
		return nil, registryError(named, err)
	}
	top := desc.Digest.String()
	if desc.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(strings.NewReader(string(desc.Manifest)))
		if err != nil {
			return nil, fmt.Errorf("image index of %s: %w", reference.FamiliarString(named), err)
		}
		digest, err := choose(index.Manifests, o.platform())
		if err != nil {
			return nil, err
		}
		if desc, err = remote.Get(ref.Context().Digest(digest.String()), options...); err != nil {
			return nil, registryError(named, err)
		}
	}
	if !desc.MediaType.IsImage() || desc.MediaType.IsSchema1() {
		return nil, errorOf(ErrInvalid, "%s: media type %q is not supported", reference.FamiliarString(named), desc.MediaType)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, registryError(named, err)
	}
	f := &found{digest: top, manifest: desc.Manifest}
	m, err := parseManifest(desc.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", reference.FamiliarString(named), err)
	}
	f.layers = m.Layers
	if f.config, err = img.RawConfigFile(); err != nil {
		return nil, registryError(named, err)
	}
	if digestOf(f.config) != m.Config.Digest.String() {
		return nil, fmt.Errorf("configuration of %s has not the digest %s", reference.FamiliarString(named), m.Config.Digest)
	}
	if f.diffIDs, err = parseConfig(f.config, len(m.Layers)); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", reference.FamiliarString(named), err)
	}
	f.blobs, err = s.fetcher(ctx, ref, o)
	if err != nil {
		return nil, registryError(named, err)
	}
	return f, nil
}

// fetcher shows the credentials and reads blobs.
func (s *Store) fetcher(ctx context.Context, ref name.Reference, o PullOptions) (*fetcher, error) {
	repo := ref.Context()
	base, err := s.transport(repo.RegistryStr(), o.Transport)
	if err != nil {
		return nil, err
	}
	auth := o.Auth
	if auth == nil {
		if auth, err = authn.Resolve(ctx, authn.DefaultKeychain, repo); err != nil {
			return nil, err
		}
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	return &fetcher{client: &http.Client{Transport: rt},
		base: fmt.Sprintf("%s://%s/v2/%s/blobs/", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr())}, nil
}

// target is a name in the words of the registry client.
func (s *Store) target(ctx context.Context, named reference.Named, host string, auth authn.Authenticator, base http.RoundTripper) (name.Reference, []remote.Option, error) {
	full := named.String()
	if domain := reference.Domain(named); host != domain {
		full = host + strings.TrimPrefix(full, domain)
	}
	ref, err := name.ParseReference(full, s.nameOptions(host)...)
	if err != nil {
		return nil, nil, &classed{text: "invalid reference format", class: ErrInvalid, cause: err}
	}
	rt, err := s.transport(host, base)
	if err != nil {
		return nil, nil, err
	}
	// Overloaded registries are waited for by our own transport.
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(rt), remote.WithUserAgent("sampan"), remote.WithRetryStatusCodes()}
	if auth != nil {
		options = append(options, remote.WithAuth(auth))
	} else {
		options = append(options, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	}
	return ref, options, nil
}

// guard keeps a registry from making us talk to where we shouldn't: no plain
// HTTP, unless that was allowed or it is to this machine, and no redirect to
// this machine from outside. It bounds manifests, and how long an answer may
// stall.
type guard struct {
	host     string // of the registry
	insecure bool   // it may use plain HTTP
	loopback bool   // it is on this machine
	stall    time.Duration
	own      http.RoundTripper // and to the rest of this machine, if it is on it
	foreign  http.RoundTripper // to wherever else it points
	asked    *atomic.Bool      // see transportPair; optional
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	base, own := g.foreign, strings.EqualFold(req.URL.Host, g.host) || strings.EqualFold(req.URL.Host, defaultHost(g.host))
	local := isLoopback(req.URL.Host)
	if own || local && g.loopback {
		base = g.own
	}
	switch {
	case local && !g.loopback:
		return nil, fmt.Errorf("%w (%s)", errHere, req.URL.Host)
	case !local && req.URL.Scheme != "https" && !(own && g.insecure):
		return nil, fmt.Errorf("%s: plain HTTP is only used for registries on this machine, and those that the configuration calls insecure", req.URL.Host)
	}
	resp, err := base.RoundTrip(req)
	switch {
	case !own || g.asked == nil:
	case err == nil: // it does without
		g.asked.Store(false)
	case g.asked.Load() && req.Context().Err() == nil:
		return nil, fmt.Errorf("%w; %s asks for a certificate, and certs.d has none for it", err, req.URL.Host)
	}
	if err == nil && resp.StatusCode == http.StatusProxyAuthRequired {
		resp.Body.Close()
		return nil, fmt.Errorf("the proxy does not pass on %s: %s", req.URL.Host, resp.Status)
	}
	if err == nil {
		resp.Body = &timed{ReadCloser: resp.Body, stall: g.stall}
	}
	if err == nil && strings.Contains(req.URL.Path, "/manifests/") {
		resp.Body = &bounded{ReadCloser: resp.Body, left: maxDocument}
		if d, e := digest.Parse(resp.Header.Get("Docker-Content-Digest")); e == nil && req.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
			resp.Body = &checked{ReadCloser: resp.Body, digest: d, verifier: d.Verifier()}
		}
	}
	return resp, err
}

// checked is a manifest that has to be what the registry says it is: one that
// was asked for by its tag has no other digest to be compared with.
type checked struct {
	io.ReadCloser
	digest   digest.Digest
	verifier digest.Verifier
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.verifier.Write(p[:n])
	if err == io.EOF && !c.verifier.Verified() {
		err = fmt.Errorf("manifest has not the digest %s that the registry tells", c.digest)
	}
	return n, err
}

type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("manifest of more than %d bytes", maxDocument)
	}
	return n, err
}

// defaultHost is where a registry is reached.
func defaultHost(host string) string {
	if host == "docker.io" {
		return name.DefaultRegistry
	}
	return host
}

// isLoopback reports whether a host, maybe with a port, is this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// choose picks the manifest for a platform.
func choose(manifests []v1.Descriptor, want ocispec.Platform) (v1.Hash, error) {
	best, score := v1.Hash{}, -1
	for _, m := range manifests {
		if m.Platform == nil || m.Platform.OS != want.OS || m.Platform.Architecture != want.Architecture {
			continue
		}
		got, asked := variant(m.Platform.Architecture, m.Platform.Variant), variant(want.Architecture, want.Variant)
		s := 0
		if got == asked {
			s = 1
		} else if want.Variant != "" {
			continue
		}
		if s > score {
			best, score = m.Digest, s
		}
	}
	if score < 0 {
		return best, errorOf(ErrNotFound, "no matching manifest for %s in the manifest list entries", platformString(want))
	}
	return best, nil
}

// variant names an architecture's variant, also the one that goes without
// saying.
func variant(arch, v string) string {
	switch {
	case v == "" && arch == "arm64":
		return "v8"
	case v == "" && arch == "arm":
		return "v7"
	case v == "" && arch == "amd64":
		return "v1"
	}
	return v
}

func platformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// registryError puts a registry's answer into Docker's words.
func registryError(named reference.Named, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		code, text := transport.ErrorCode(""), http.StatusText(te.StatusCode)
		if len(te.Errors) > 0 {
			code = te.Errors[0].Code
			text = strings.ToLower(strings.ReplaceAll(string(code), "_", " ")) + ": " + te.Errors[0].Message
		}
		short := reference.FamiliarName(named)
		switch {
		case code == transport.ManifestUnknownErrorCode, code == "" && te.StatusCode == http.StatusNotFound:
			return &classed{text: fmt.Sprintf("manifest for %s not found: %s", reference.FamiliarString(named), text), class: ErrNotFound, cause: err}
		case code == transport.NameUnknownErrorCode:
			return &classed{text: fmt.Sprintf("repository %s not found: %s", short, text), class: ErrNotFound, cause: err}
		case code == transport.DeniedErrorCode, code == transport.UnauthorizedErrorCode,
			te.StatusCode == http.StatusUnauthorized, te.StatusCode == http.StatusForbidden:
			return &classed{text: fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login': %s", short, text), class: ErrNotFound, cause: err}
		}
	}
	return fmt.Errorf("pull %s: %w", reference.FamiliarString(named), err)
}
