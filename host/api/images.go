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
	"github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
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
		return s.imageImport(w, r)
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
		if o.Platform, err = parsePlatform(p); err != nil {
			return err
		}
	}
	out := newProgress(w)
	refs := []string{ref}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		// Without a tag all of them are meant: clients name the latest.
		if refs, err = s.Images.Tags(r.Context(), ref, o); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		img, err := s.Images.Pull(r.Context(), ref, o, out.tell)
		if err != nil {
			return out.fail(err)
		}
		if w := otherPlatform(img, ref, o.Platform); w != "" {
			out.tell(image.Progress{Status: "WARNING: " + w})
		}
		s.Engine.Emit(events.ImageEventType, events.ActionPull, familiar(ref), imageAttributes(img, familiar(ref)))
	}
	return nil
}

// otherPlatform says that an image is for another platform than was asked for.
// Docker pulls it nevertheless when its name stands for nothing else.
func otherPlatform(img image.Image, ref string, want *ocispec.Platform) string {
	var is ocispec.Platform
	if want == nil || json.Unmarshal(img.RawConfig, &is) != nil || is.OS == want.OS && is.Architecture == want.Architecture {
		return ""
	}
	return fmt.Sprintf("image with reference %s was found but does not match the specified platform: wanted %s/%s, actual: %s/%s",
		familiar(ref), want.OS, want.Architecture, is.OS, is.Architecture)
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
	return authenticator(c), nil
}

// authenticator shows credentials to a registry; nil when there are none.
func authenticator(c registry.AuthConfig) authn.Authenticator {
	a := authn.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if a == (authn.AuthConfig{}) {
		return nil
	}
	return authn.FromConfig(a)
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

func notSupported(r *http.Request) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("sampan: %s %s is not supported", r.Method, r.URL.Path))
}

// imagePost is POST /images/NAME/tag and /push.
func (s *server) imagePost(w http.ResponseWriter, r *http.Request) error {
	if name, ok := strings.CutSuffix(r.PathValue("name"), "/push"); ok {
		return s.imagePush(w, r, name)
	}
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
	list, _, err := s.removeImage(r.PathValue("name"), boolean(r, "force"))
	if err != nil {
		return err
	}
	s.Engine.LayersRemoved()
	return answer(w, http.StatusOK, list)
}

// removeImage removes a name of an image, or the image, and tells what became
// of it, and which layers are gone.
func (s *server) removeImage(name string, force bool) (list []apiimage.DeleteResponse, layers []string, err error) {
	img, err := s.Images.Get(name)
	if err != nil {
		return nil, nil, err
	}
	removed, err := s.Images.Remove(name, image.RemoveOptions{
		Force:   force,
		InUse:   func(id string) []string { all, _ := s.Engine.ImageUsers(id); return all },
		Running: func(id string) []string { _, running := s.Engine.ImageUsers(id); return running },
	})
	if err != nil {
		return nil, nil, err
	}
	list = []apiimage.DeleteResponse{}
	for _, step := range removed {
		list = append(list, apiimage.DeleteResponse{Untagged: step.Untagged, Deleted: step.Deleted})
		switch {
		case step.Untagged != "":
			s.Engine.Emit(events.ImageEventType, events.ActionUnTag, img.ID, imageAttributes(img, step.Untagged))
		case step.IsLayer(img.ID):
			layers = append(layers, step.Deleted)
		default:
			s.Engine.Emit(events.ImageEventType, events.ActionDelete, img.ID, imageAttributes(img, img.ID))
		}
	}
	return list, layers, nil
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
