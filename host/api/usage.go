package api

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"sampan/host/engine"
)

func (s *server) containerPause(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.Pause(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerUnpause(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.Unpause(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) containerUpdate(w http.ResponseWriter, r *http.Request) error {
	var u container.UpdateConfig
	if err := decode(w, r, &u); err != nil {
		return err
	}
	resp, err := s.Engine.Update(r.Context(), r.PathValue("name"), u)
	return s.reply(w, http.StatusOK, resp, err)
}

func (s *server) containerTop(w http.ResponseWriter, r *http.Request) error {
	list, err := s.Engine.Top(r.Context(), r.PathValue("name"), r.FormValue("ps_args"))
	return s.reply(w, http.StatusOK, list, err)
}

// containerStats streams unless it is told not to, as Docker's does.
func (s *server) containerStats(w http.ResponseWriter, r *http.Request) error {
	o := engine.StatsOptions{Stream: true, OneShot: boolean(r, "one-shot")}
	if r.FormValue("stream") != "" {
		o.Stream = boolean(r, "stream")
	}
	if o.Stream && o.OneShot {
		return invalid("cannot have stream=true and one-shot=true")
	}
	out := newStream(w)
	began := false
	old := less(clientVersion(r), "1.52") // without the system's name
	return s.Engine.Stats(r.Context(), r.PathValue("name"), o, func(v container.StatsResponse) error {
		if !began {
			began = true
			if err := out.begin(); err != nil {
				return err
			}
		}
		if old {
			v.OSType = ""
		}
		return out.send(v)
	})
}
