package api

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"sampan/host/engine"
	"sampan/host/image"
	"sampan/host/image/change"
)

// pathOf reads the query parameter path.
func pathOf(r *http.Request) (string, error) {
	if p := r.FormValue("path"); p != "" {
		return p, nil
	}
	return "", invalid("bad parameter: the path is empty")
}

func (s *server) archiveStat(w http.ResponseWriter, r *http.Request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	stat, err := s.Engine.StatPath(r.Context(), r.PathValue("name"), p)
	if err != nil {
		return err
	}
	return tellStat(w, stat)
}

// tellStat puts what there is to know of a path into the header.
func tellStat(w http.ResponseWriter, stat container.PathStat) error {
	text, err := json.Marshal(stat)
	if err != nil {
		return err
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(text))
	return nil
}

func (s *server) archiveGet(w http.ResponseWriter, r *http.Request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	tar, stat, err := s.Engine.CopyFrom(r.Context(), r.PathValue("name"), p)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := tellStat(w, stat); err != nil {
		return err
	}
	return sendTar(w, "application/x-tar", tar)
}

// sendTar sends a stream. One that breaks off takes the connection with it, or
// the client would take it for whole.
func sendTar(w http.ResponseWriter, contentType string, r io.Reader) error {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	_, err := io.Copy(w, r)
	if err != nil {
		if conn, _, herr := http.NewResponseController(w).Hijack(); herr == nil {
			conn.Close()
		}
	}
	return err
}

func (s *server) archivePut(w http.ResponseWriter, r *http.Request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	tar, err := image.Decompress(r.Body)
	if err != nil {
		return invalid("%v", err)
	}
	defer tar.Close()
	o := engine.CopyOptions{KeepKind: boolean(r, "noOverwriteDirNonDir"), ToUser: boolean(r, "copyUIDGID")}
	return s.Engine.CopyTo(r.Context(), r.PathValue("name"), p, tar, o)
}

func (s *server) containerExport(w http.ResponseWriter, r *http.Request) error {
	tar, err := s.Engine.Export(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	defer tar.Close()
	return sendTar(w, "application/octet-stream", tar)
}

func (s *server) containerChanges(w http.ResponseWriter, r *http.Request) error {
	list, err := s.Engine.Changes(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, list)
}

func (s *server) commit(w http.ResponseWriter, r *http.Request) error {
	cfg, err := changedConfig(w, r)
	if err != nil {
		return err
	}
	ref := r.FormValue("repo")
	if tag := r.FormValue("tag"); tag != "" && ref != "" {
		ref += ":" + tag
	}
	name := r.FormValue("container")
	pause := r.FormValue("pause") == "" || boolean(r, "pause")
	c, err := s.Engine.Commit(r.Context(), name, cfg, pause)
	if err != nil {
		return err
	}
	defer c.Close()
	img, err := s.Images.Commit(r.Context(), c.ImageID, c.Layer, image.CommitOptions{
		Name: ref, Config: c.Config, Author: r.FormValue("author"), Comment: r.FormValue("comment"), CreatedBy: c.CreatedBy,
	})
	if err != nil {
		return err
	}
	if ref != "" {
		ref = familiar(ref)
		s.Engine.Emit(events.ImageEventType, events.ActionTag, img.ID, imageAttributes(img, ref))
	}
	s.Engine.Committed(name, img.ID, ref)
	return answer(w, http.StatusCreated, container.CommitResponse{ID: img.ID})
}

// changedConfig is the configuration that a request of a commit has, with the
// changes that it asks for.
func changedConfig(w http.ResponseWriter, r *http.Request) (*container.Config, error) {
	var spec *dockerspec.DockerOCIImageConfig
	if err := decode(w, r, &spec); err != nil {
		return nil, err
	}
	if spec == nil {
		spec = new(dockerspec.DockerOCIImageConfig)
	}
	if err := r.ParseForm(); err != nil {
		return nil, invalid("%v", err)
	}
	if err := change.Apply(spec, r.Form["changes"]); err != nil {
		return nil, invalid("%v", err)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cfg := new(container.Config)
	return cfg, json.Unmarshal(text, cfg)
}
