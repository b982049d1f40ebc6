package api

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/network"
)

func (s *server) networkList(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	list, err := s.Engine.NetworkList(f)
	return s.reply(w, http.StatusOK, list, err)
}

func (s *server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	n, err := s.Engine.NetworkInspect(r.PathValue("name"))
	return s.reply(w, http.StatusOK, n, err)
}

func (s *server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	resp, err := s.Engine.NetworkCreate(req)
	return s.reply(w, http.StatusCreated, resp, err)
}

func (s *server) networkRemove(w http.ResponseWriter, r *http.Request) error {
	if err := s.Engine.NetworkRemove(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	report, err := s.Engine.NetworkPrune(r.Context(), f)
	return s.reply(w, http.StatusOK, report, err)
}

func (s *server) networkConnect(w http.ResponseWriter, r *http.Request) error {
	var req network.ConnectRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	// What has begun comes to its end, whoever waits for it.
	return s.Engine.NetworkConnect(context.WithoutCancel(r.Context()), r.PathValue("name"), req.Container, req.EndpointConfig)
}

func (s *server) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	var req network.DisconnectRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	return s.Engine.NetworkDisconnect(context.WithoutCancel(r.Context()), r.PathValue("name"), req.Container, req.Force)
}
