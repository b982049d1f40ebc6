package api

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"
)

func (s *server) volumeList(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	list, err := s.Engine.VolumeList(f)
	return s.reply(w, http.StatusOK, volume.ListResponse{Volumes: list, Warnings: []string{}}, err)
}

func (s *server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	v, err := s.Engine.VolumeCreate(req)
	return s.reply(w, http.StatusCreated, v, err)
}

func (s *server) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.Engine.VolumeInspect(r.PathValue("name"))
	return s.reply(w, http.StatusOK, v, err)
}

func (s *server) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.VolumeRemove(r.Context(), r.PathValue("name"), boolean(r, "force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) volumePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	report, err := s.Engine.VolumePrune(r.Context(), f)
	return s.reply(w, http.StatusOK, report, err)
}

// volumeExport sends a tar of a volume's files.
func (s *server) volumeExport(w http.ResponseWriter, r *http.Request) error {
	tar, err := s.Engine.VolumeExport(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	defer tar.Close()
	return sendTar(w, "application/x-tar", tar)
}

// volumeImport unpacks a tar in a volume.
func (s *server) volumeImport(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.VolumeImport(r.Context(), r.PathValue("name"), r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
