package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// shmDir is where a container has its shared memory.
const shmDir = "/dev/shm"

// nameOwners replaces the names of containers whose namespaces are to be joined
// by their IDs, as Docker does: a name may become another's.
func (e *Engine) nameOwners(h *container.HostConfig) error {
	if name := h.PidMode.Container(); name != "" {
		c, err := e.find(name)
		if err != nil {
			return invalid("%s", err) // not 404: clients would look for the image
		}
		h.PidMode = container.PidMode(ofContainer + c.id)
	}
	if name := h.IpcMode.Container(); name != "" {
		c, err := e.find(name)
		if err != nil {
			return invalid("%s", err)
		}
		h.IpcMode = container.IpcMode(ofContainer + c.id)
	}
	// One that isn't there yet is looked for by the start.
	if c, err := e.find(h.NetworkMode.ConnectedContainer()); err == nil && h.NetworkMode.IsContainer() {
		h.NetworkMode = container.NetworkMode(ofContainer + c.id)
	}
	return nil
}

// owners are the names of the containers whose namespaces a container is in.
func owners(h *container.HostConfig) []string {
	var names []string
	for _, name := range []string{h.NetworkMode.ConnectedContainer(), h.PidMode.Container(), h.IpcMode.Container()} {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// joinOwners puts the IPC and pid namespaces of other containers, which must be
// running, into a spec's input.
func (e *Engine) joinOwners(in *specInput) error {
	h := *in.Host
	if h.IpcMode.IsContainer() {
		name := h.IpcMode.Container()
		owner, err := e.runningOwner(name)
		if err == nil && !sharesIPC(owner) {
			err = errdefs.ErrInternal.WithMessage("non-shareable IPC (hint: use IpcMode:shareable for the donor container)")
		}
		if err != nil {
			return fmt.Errorf("can't join IPC of container %s: %w", name, err)
		}
		if in.SharedIPC = owner.ID; owner.HostConfig.IpcMode.IsHost() {
			h.IpcMode = container.IPCModeHost
		}
	}
	if h.PidMode.IsContainer() {
		owner, err := e.runningOwner(h.PidMode.Container())
		if err != nil {
			return err
		}
		if in.SharedPID = owner.ID; owner.HostConfig.PidMode.IsHost() {
			h.PidMode = "host"
		}
	}
	in.Host = &h
	return nil
}

// runningOwner is the record of a container that runs.
func (e *Engine) runningOwner(name string) (*record, error) {
	if name == "" {
		return nil, invalid(`invalid name or ID supplied: ""`)
	}
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run != nil:
	case c.rec.State.Status == container.StateRestarting:
		return nil, conflict("Container %s is restarting, wait until the container is running", c.id)
	default:
		return nil, conflict("container %s is not running", c.id)
	}
	rec := c.rec
	return &rec, nil
}

// sharesIPC says whether others may be in a container's IPC namespace: where
// they get at its shared memory as well.
func sharesIPC(rec *record) bool {
	mode := rec.HostConfig.IpcMode
	own := slices.ContainsFunc(rec.Mounts, func(m mountRecord) bool { return m.Destination == shmDir })
	return mode.IsHost() || (mode.IsShareable() || mode.IsContainer()) && !own
}

// ownersWait is how long a container waits for those whose namespaces it is in
// to be back.
const ownersWait = time.Minute

// awaitOwners waits until those containers run whose namespaces a container is
// in, or won't be restarted: after the machine's end, or the daemon's, all that
// come back do so at once.
func (e *Engine) awaitOwners(ctx context.Context, h *container.HostConfig) {
	ctx, cancel := context.WithTimeout(ctx, ownersWait)
	defer cancel()
	for _, name := range owners(h) {
		c, err := e.find(name)
		if err != nil {
			continue // the start will say so
		}
		for wait := c.comingBack(); wait != nil; wait = c.comingBack() {
			select {
			case <-wait:
			case <-ctx.Done():
				return
			}
		}
	}
}

// comingBack is closed when a container is one step nearer to being back; nil
// when it runs, or won't by itself.
func (c *ctr) comingBack() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return c.again
	}
	select {
	case <-c.run.guest.Done(): // which nobody has noticed yet
		return c.run.ended
	default:
		return nil
	}
}

// comeBack says that a start by policy is about to be tried; the caller holds
// mu. The result ends that.
func (c *ctr) comeBack() (over func()) {
	again := make(chan struct{})
	c.again = again
	return func() {
		c.mu.Lock()
		if c.again == again {
			c.again = nil
		}
		c.mu.Unlock()
		close(again)
	}
}
