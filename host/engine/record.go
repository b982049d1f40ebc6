package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// record is what is stored of a container.
type record struct {
	ID      string
	Name    string // without the slash that the API puts before it
	Created time.Time
	ImageID string
	// Layers are the image's, so that a container outlives its image's name.
	Layers     []string
	Args       []string // entrypoint and command
	Config     *container.Config
	HostConfig *container.HostConfig
	// Networks that it is in, the first one's interface first; empty where it
	// shares another container's. The slice is replaced, never modified.
	Networks []attachment
	Mounts   []mountRecord `json:",omitempty"`
	// Links to others of the default network. The slice is replaced, never
	// modified.
	Links []link `json:",omitempty"`
	State state
	// RestartCount counts restarts by policy.
	RestartCount int
	// Stopped says that a user has stopped it.
	Stopped bool
	// Started says that the guest may hold a writable layer.
	Started bool
	// Removing says that the container was being removed, and its anonymous
	// volumes with it: the next daemon goes on with that.
	Removing bool `json:",omitempty"`
}

// state of a container.
type state struct {
	Status     container.ContainerState
	Pid        int
	ExitCode   int
	OOMKilled  bool
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
	// Health is replaced, never modified; nil without a check.
	Health *container.Health `json:",omitempty"`
}

// attachment is a container's place in a network.
type attachment struct {
	// Name of the network, and its ID: "" until the network has been seen.
	Name, ID string
	// Asked is what the user wants of it.
	Asked *network.EndpointSettings
}

// mountRecord is one of a container's mounts.
type mountRecord struct {
	container.MountPoint
	// VolumeID is the volume's directory in the guest.
	VolumeID string `json:",omitempty"`
	// NoCopy keeps an empty volume empty.
	NoCopy bool `json:",omitempty"`
	// Subpath is the part of the volume that is mounted; "": all.
	Subpath string `json:",omitempty"`
	// Anonymous volumes go with the container.
	Anonymous bool `json:",omitempty"`
	// Options of a tmpfs.
	Options []string `json:",omitempty"`
	// Hidden mounts are not shown (--tmpfs).
	Hidden bool `json:",omitempty"`
	// Spec says that it was given as HostConfig.Mounts, where a missing
	// source is an error.
	Spec bool `json:",omitempty"`
	// Create makes a missing source in spite of Spec.
	Create bool `json:",omitempty"`
}

// writeJSON replaces a file by v, which grows in the folder tmp. With sync it
// outlives a power cut, without it only the daemon's own death.
func writeJSON(tmp, path string, v any, sync bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(tmp, "")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// removeFile deletes a file that need not exist. With sync it stays away after
// a power cut.
func removeFile(path string, sync bool) error {
	err := os.Remove(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && sync:
		return syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// tmp is the folder of what is being made. A start of the daemon empties it.
func (e *Engine) tmp() string { return filepath.Join(e.cfg.Home, "tmp") }

func (e *Engine) containerDir(id string) string {
	return filepath.Join(e.cfg.Home, "containers", id)
}

func (e *Engine) logPath(id string) string {
	return filepath.Join(e.containerDir(id), "json.log")
}

// save stores a container; the caller holds its mu.
func (e *Engine) save(c *ctr) error {
	sync := !c.rec.HostConfig.AutoRemove
	if err := writeJSON(e.tmp(), filepath.Join(e.containerDir(c.id), "config.json"), &c.rec, sync); err != nil {
		return fmt.Errorf("store container %s: %w", c.rec.Name, err)
	}
	return nil
}

// trySave is for changes that have happened whether they can be stored or not.
func (e *Engine) trySave(c *ctr) {
	if err := e.save(c); err != nil {
		e.log.Error("container's state is not stored", "id", c.id, "error", err)
	}
}
