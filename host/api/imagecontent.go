package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"sampan/host/image"
	"sampan/host/image/change"
)

// imageImport is POST /images/create with fromSrc: an image of one layer, from
// a tar of a root.
func (s *server) imageImport(w http.ResponseWriter, r *http.Request) error {
	src := r.FormValue("fromSrc")
	body := io.Reader(r.Body)
	if src != "-" {
		return errdefs.ErrNotImplemented.WithMessage("sampan: importing from a URL is not supported: download the file and import that")
	}
	p, err := queryPlatform(r)
	if err != nil {
		return err
	}
	name, err := withTag(r.FormValue("repo"), r.FormValue("tag"))
	if err != nil {
		return err
	}
	var cfg dockerspec.DockerOCIImageConfig
	if err := change.Apply(&cfg, r.Form["changes"]); err != nil {
		return err
	}
	now := time.Now().UTC()
	comment := r.FormValue("message")
	if comment == "" {
		comment = "Imported from " + src
	}
	out := newProgress(w)
	img, err := s.Images.Build(r.Context(), image.Addition{Layer: body, Name: name, Config: func(diffIDs []string) ([]byte, error) {
		doc := dockerspec.DockerOCIImage{Config: cfg}
		doc.Created, doc.Platform = &now, p
		doc.History = []ocispec.History{{Created: &now, Comment: comment}}
		doc.RootFS = ocispec.RootFS{Type: "layers"}
		for _, d := range diffIDs {
			doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, digest.Digest(d))
		}
		return json.Marshal(doc)
	}})
	if err != nil {
		return out.fail(err)
	}
	out.send(jsonstream.Message{Status: img.ID})
	s.Engine.Emit(events.ImageEventType, events.ActionImport, img.ID, imageAttributes(img, img.ID))
	return nil
}

// withTag joins a repository, maybe with a tag of its own, and a tag.
func withTag(repo, tag string) (string, error) {
	if repo == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", invalid("invalid reference format")
	}
	if tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return "", invalid("invalid reference format")
		}
	}
	if _, ok := named.(reference.Digested); ok {
		return "", invalid("cannot import digest reference")
	}
	return reference.TagNameOnly(named).String(), nil
}

// queryPlatform reads "platform", in either of its forms.
func queryPlatform(r *http.Request) (ocispec.Platform, error) {
	p := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	v := r.FormValue("platform")
	if v == "" {
		return p, nil
	}
	asked, err := parsePlatform(v)
	if err != nil {
		return p, err
	}
	return *asked, nil
}

// parsePlatform reads "linux/arm64/v8", or the same as JSON.
func parsePlatform(v string) (*ocispec.Platform, error) {
	if strings.HasPrefix(v, "{") {
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(v), &p); err != nil {
			return nil, invalid("failed to parse platform: %v", err)
		}
		return &p, nil
	}
	parts := strings.Split(v, "/")
	p := &ocispec.Platform{OS: "linux", Architecture: parts[0]}
	switch len(parts) {
	case 1:
		if parts[0] == "linux" {
			p.Architecture = runtime.GOARCH
		}
	case 2, 3:
		p.OS, p.Architecture = parts[0], parts[1]
		if len(parts) == 3 {
			p.Variant = parts[2]
		}
	default:
		return nil, invalid("%q: unknown operating system or architecture: invalid argument", v)
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	if p.OS != "linux" {
		return nil, invalid("sampan: the operating system %q is not supported: only linux", p.OS)
	}
	return p, nil
}

// imageSave is GET /images/get?names=… and GET /images/NAME/get.
func (s *server) imageSave(w http.ResponseWriter, r *http.Request, names []string) error {
	if len(names) == 0 {
		return invalid("no image to save")
	}
	archive, err := s.Images.Save(names)
	if err != nil {
		return err
	}
	defer archive.Close()
	if r.ParseForm() == nil {
		for _, v := range r.Form["platform"] {
			p, err := parsePlatform(v)
			if err != nil {
				return err
			}
			for _, img := range archive.Images {
				if img.Config.Architecture != p.Architecture {
					return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("image %s does not provide the specified platform (%s)", img.ID, path.Join(p.OS, p.Architecture, p.Variant)))
				}
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := archive.Write(r.Context(), w); err != nil {
		// The client must not take what it has for an archive.
		s.Log.Error("save image", "error", err)
		panic(http.ErrAbortHandler)
	}
	for _, img := range archive.Images {
		s.Engine.Emit(events.ImageEventType, events.ActionSave, img.ID, imageAttributes(img, img.ID))
	}
	return nil
}

func (s *server) imageSaveAll(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return invalid("%v", err)
	}
	return s.imageSave(w, r, r.Form["names"])
}

// imagePush is POST /images/NAME/push?tag=…
func (s *server) imagePush(w http.ResponseWriter, r *http.Request, name string) error {
	o := image.PushOptions{}
	var err error
	if o.Auth, err = registryAuth(r); err != nil {
		return err
	}
	if v := r.FormValue("platform"); v != "" {
		if o.Platform, err = parsePlatform(v); err != nil {
			return err
		}
	}
	if tag := r.FormValue("tag"); tag != "" {
		name += ":" + tag
	}
	out := newProgress(w)
	err = s.Images.Push(r.Context(), name, o, out.tell, func(p image.Pushed) {
		aux, err := json.Marshal(map[string]any{"Tag": p.Tag, "Digest": p.Digest, "Size": p.Size})
		if err == nil {
			out.send(map[string]any{"progressDetail": map[string]any{}, "aux": json.RawMessage(aux)})
		}
	})
	if err != nil {
		return out.fail(err)
	}
	if img, err := s.Images.Get(name); err == nil {
		s.Engine.Emit(events.ImageEventType, events.ActionPush, familiar(name), imageAttributes(img, familiar(name)))
	}
	return nil
}

// auth is POST /auth: it tries a registry's credentials.
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	var c registry.AuthConfig
	if err := decode(w, r, &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	if err := s.Images.Login(ctx, c.ServerAddress, authenticator(c)); err != nil {
		return err
	}
	return answer(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

func (s *server) imageSearch(http.ResponseWriter, *http.Request) error {
	return errdefs.ErrNotImplemented.WithMessage("sampan: searching registries is not supported")
}

// imageCheck is POST /sampan/machine/check.
func (s *server) imageCheck(w http.ResponseWriter, r *http.Request) error {
	report, err := s.Images.Check(r.Context(), image.PullOptions{})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, report)
}
