package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"sampan/host/image"
)

// progressEvery is how often a layer's progress is sent at most.
const progressEvery = 100 * time.Millisecond

// progress sends what the store tells as Docker's JSON messages. The store may
// call it from several goroutines.
type progress struct {
	mu    sync.Mutex
	out   *stream
	began bool
	last  map[string]time.Time // of each layer's bar
	err   error
}

func newProgress(w http.ResponseWriter) *progress {
	return &progress{out: newStream(w), last: map[string]time.Time{}}
}

func (p *progress) tell(e image.Progress) {
	m := jsonstream.Message{ID: e.ID, Status: e.Status}
	if e.Total > 0 {
		m.Progress = &jsonstream.Progress{Current: e.Current, Total: e.Total}
	} else if e.ID != "" {
		m.Progress = &jsonstream.Progress{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Total > 0 && e.Current < e.Total {
		if time.Since(p.last[e.ID]) < progressEvery {
			return
		}
		p.last[e.ID] = time.Now()
	}
	p.sendLocked(m)
}

func (p *progress) send(m any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sendLocked(m)
}

func (p *progress) sendLocked(m any) {
	if !p.began {
		p.began = true
		p.err = p.out.begin()
	}
	if p.err == nil {
		p.err = p.out.send(m)
	}
}

// fail ends the stream with err, or leaves it to the caller when nothing has
// been sent.
func (p *progress) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.began {
		return err
	}
	p.sendLocked(struct {
		jsonstream.Message
		Text string `json:"error"` // for older clients
	}{jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, err.Error()})
	return nil
}

func (s *server) imageCreate(w http.ResponseWriter, r *http.Request) error {
	if r.FormValue("fromSrc") != "" {
		return errdefs.ErrNotImplemented.WithMessage("sampan: importing an image is not supported")
	}
	ref := r.FormValue("fromImage")
	if ref == "" {
		return invalid("invalid reference format")
	}
	if tag := r.FormValue("tag"); strings.Contains(tag, ":") {
		ref += "@" + tag
	} else if tag != "" {
		ref += ":" + tag
	}
	o := image.PullOptions{}
	var err error
	if o.Auth, err = registryAuth(r); err != nil {
		return err
	}
	if p := r.FormValue("platform"); p != "" {
		arch, err := platform(p)
		if err != nil {
			return err
		}
		o.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	}
	out := newProgress(w)
	img, err := s.Images.Pull(r.Context(), ref, o, out.tell)
	if err != nil {
		return out.fail(err)
	}
	s.Engine.Emit(events.ImageEventType, events.ActionPull, familiar(ref), imageAttributes(img, familiar(ref)))
	return nil
}

// registryAuth reads X-Registry-Auth; nil means that the client has none.
func registryAuth(r *http.Request) (authn.Authenticator, error) {
	header := r.Header.Get(registry.AuthHeader)
	if header == "" {
		return nil, nil
	}
	text, err := base64.URLEncoding.DecodeString(header)
	if err != nil {
		return nil, invalid("invalid X-Registry-Auth header: %v", err)
	}
	var c registry.AuthConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, invalid("invalid X-Registry-Auth header: %v", err)
	}
	a := authn.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if a == (authn.AuthConfig{}) {
		return nil, nil
	}
	return authn.FromConfig(a), nil
}

func (s *server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	out := newProgress(w)
	tell := out.tell
	if boolean(r, "quiet") {
		tell = func(image.Progress) {}
	}
	loaded, err := s.Images.Load(r.Context(), r.Body, tell)
	if err != nil {
		return out.fail(err)
	}
	for _, ref := range loaded {
		line := "Loaded image: " + ref + "\n"
		if strings.HasPrefix(ref, "sha256:") {
			line = "Loaded image ID: " + ref + "\n"
		}
		out.send(jsonstream.Message{Stream: line})
		if img, err := s.Images.Get(ref); err == nil {
			s.Engine.Emit(events.ImageEventType, events.ActionLoad, img.ID, imageAttributes(img, ref))
		}
	}
	return nil
}

func (s *server) imageList(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	match, err := s.imageFilter(f)
	if err != nil {
		return err
	}
	list := []apiimage.Summary{}
	for _, img := range images {
		if !match(img) {
			continue
		}
		list = append(list, apiimage.Summary{
			ID: img.ID, Created: img.Created.Unix(), Size: img.Size, SharedSize: -1, Containers: -1,
			RepoTags: nonNil(img.Tags), RepoDigests: nonNil(img.Digests), Labels: img.Config.Config.Labels,
		})
	}
	return answer(w, http.StatusOK, list)
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// imageFilter is the condition of `images --filter`.
func (s *server) imageFilter(f map[string][]string) (func(image.Image) bool, error) {
	var tests []func(image.Image) bool
	for key, values := range f {
		for _, v := range values {
			test, err := s.imageTest(key, v)
			if err != nil {
				return nil, err
			}
			if key != "reference" { // of those, one is enough
				tests = append(tests, test)
			}
		}
	}
	if refs := f["reference"]; len(refs) > 0 {
		tests = append(tests, func(img image.Image) bool {
			for _, pattern := range refs {
				if hasReference(img, pattern) {
					return true
				}
			}
			return false
		})
	}
	return func(img image.Image) bool {
		for _, test := range tests {
			if !test(img) {
				return false
			}
		}
		return true
	}, nil
}

func (s *server) imageTest(key, v string) (func(image.Image) bool, error) {
	switch key {
	case "dangling":
		want := v == "true" || v == "1"
		if !want && v != "false" && v != "0" {
			return nil, invalid("invalid filter 'dangling=[%s]'", v)
		}
		return func(img image.Image) bool { return (len(img.Tags) == 0) == want }, nil
	case "label":
		name, value, exact := strings.Cut(v, "=")
		return func(img image.Image) bool {
			got, ok := img.Config.Config.Labels[name]
			return ok && (!exact || got == value)
		}, nil
	case "reference":
		return func(image.Image) bool { return true }, nil
	case "before", "since":
		other, err := s.Images.Get(v)
		if err != nil {
			return nil, err
		}
		return func(img image.Image) bool {
			if key == "before" {
				return img.Created.Before(other.Created)
			}
			return img.Created.After(other.Created)
		}, nil
	}
	return nil, invalid("invalid filter '%s'", key)
}

func hasReference(img image.Image, pattern string) bool {
	for _, name := range append(append([]string{}, img.Tags...), img.Digests...) {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		if ok, err := reference.FamiliarMatch(pattern, ref); ok && err == nil {
			return true
		}
	}
	return false
}

// imageGet is GET /images/NAME/json; a name has slashes of its own.
func (s *server) imageGet(w http.ResponseWriter, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("name"), "/json")
	if !ok {
		return notSupported(r)
	}
	img, err := s.Images.Get(name)
	if err != nil {
		return err
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(img.RawConfig, &config); err != nil {
		return fmt.Errorf("image %s: configuration: %w", img.ID, err)
	}
	resp := apiimage.InspectResponse{
		ID: img.ID, RepoTags: nonNil(img.Tags), RepoDigests: nonNil(img.Digests),
		Author: config.Author, Config: &config.Config,
		Architecture: config.Architecture, Variant: config.Variant, Os: config.OS, OsVersion: config.OSVersion,
		Size: img.Size, GraphDriver: &storage.DriverData{Name: "overlay2", Data: map[string]string{}},
		RootFS: apiimage.RootFS{Type: "layers", Layers: img.DiffIDs},
	}
	if !img.Created.IsZero() {
		resp.Created = img.Created.Format(time.RFC3339Nano)
	}
	return answer(w, http.StatusOK, resp)
}

func notSupported(r *http.Request) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("sampan: %s %s is not supported", r.Method, r.URL.Path))
}

// imagePost is POST /images/NAME/tag.
func (s *server) imagePost(w http.ResponseWriter, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("name"), "/tag")
	if !ok {
		return notSupported(r)
	}
	ref := r.FormValue("repo")
	if tag := r.FormValue("tag"); tag != "" {
		ref += ":" + tag
	}
	if err := s.Images.Tag(name, ref); err != nil {
		return err
	}
	if img, err := s.Images.Get(ref); err == nil {
		s.Engine.Emit(events.ImageEventType, events.ActionTag, img.ID, imageAttributes(img, familiar(ref)))
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *server) imageRemove(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	img, err := s.Images.Get(name)
	if err != nil {
		return err
	}
	removed, err := s.Images.Remove(name, image.RemoveOptions{
		Force:   boolean(r, "force"),
		InUse:   func(id string) []string { all, _ := s.Engine.ImageUsers(id); return all },
		Running: func(id string) []string { _, running := s.Engine.ImageUsers(id); return running },
	})
	if err != nil {
		return err
	}
	s.Engine.LayersRemoved()
	list := []apiimage.DeleteResponse{}
	for _, step := range removed {
		list = append(list, apiimage.DeleteResponse{Untagged: step.Untagged, Deleted: step.Deleted})
		switch {
		case step.Untagged != "":
			s.Engine.Emit(events.ImageEventType, events.ActionUnTag, img.ID, imageAttributes(img, step.Untagged))
		case step.Deleted == img.ID:
			s.Engine.Emit(events.ImageEventType, events.ActionDelete, img.ID, imageAttributes(img, img.ID))
		}
	}
	return answer(w, http.StatusOK, list)
}

// imageAttributes are what events tell of an image.
func imageAttributes(img image.Image, name string) map[string]string {
	attrs := map[string]string{"name": name}
	for k, v := range img.Config.Config.Labels {
		attrs[k] = v
	}
	return attrs
}

// familiar is a name as Docker shows it.
func familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}
