package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"sampan/proto"
)

// RemoveOptions of Remove.
type RemoveOptions struct {
	// Force kills a running container.
	Force bool
	// Volumes removes the container's anonymous volumes.
	Volumes bool
}

// Remove deletes a container. It never boots the machine.
func (e *Engine) Remove(ctx context.Context, name string, o RemoveOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if err := e.claim(c, name, o); err != nil {
		return err
	}
	err = e.removeClaimed(context.WithoutCancel(ctx), c, o)
	if err != nil {
		c.mu.Lock()
		c.removing = false
		c.mu.Unlock()
	}
	return err
}

// claim marks a container for removal, or says why not.
func (e *Engine) claim(c *ctr, name string, o RemoveOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.removing:
		return conflict("removal of container %s is already in progress", name)
	case c.active() && !o.Force:
		state, hint := "container is running", "stop the container before removing or force remove"
		if c.run == nil {
			state = "container is restarting"
		}
		return conflict("cannot remove container %q: %s: %s", "/"+c.rec.Name, state, hint)
	}
	if c.callOff != nil {
		if !o.Force {
			return conflict("cannot remove container %q: container is starting: stop the container before removing or force remove", "/"+c.rec.Name)
		}
		c.callOff()
	}
	c.removing = true
	c.stopRestart()
	for _, end := range c.users {
		end()
	}
	return nil
}

func (e *Engine) removeClaimed(ctx context.Context, c *ctr, o RemoveOptions) error {
	c.op <- struct{}{} // a start that is under way comes to its end
	defer func() { <-c.op }()
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		if !o.Force {
			return conflict("cannot remove container %q: container is running: stop the container before removing or force remove", "/"+c.rec.Name)
		}
		if err := e.signal(ctx, c, r, sigKILL); err != nil {
			e.log.Warn("kill container", "id", c.id, "error", err)
		}
		if err := e.awaitEnd(ctx, c, r, killTimeout); err != nil {
			return err
		}
	}
	rec, err := e.markRemoving(c, o)
	if err != nil {
		return err
	}
	if rec.Started {
		if err := e.discard(ctx, purge{Container: c.id}); err != nil {
			return fmt.Errorf("remove container %s: %w", rec.Name, err)
		}
	}
	if o.Volumes {
		e.removeAnonymous(ctx, rec.Mounts)
	}
	if err := e.removeFolder(&rec); err != nil {
		return fmt.Errorf("remove container %s: %w", rec.Name, err)
	}
	e.forget(c, rec.Name)
	e.emitContainer(c, events.ActionDestroy, nil)
	c.mu.Lock()
	c.notify(true)
	h := c.hub
	close(c.gone)
	c.mu.Unlock()
	h.close()
	return nil
}

// markRemoving notes in the record that anonymous volumes go with it, for the
// case that the daemon does not come to the end of it. They are removed before
// the record is.
func (e *Engine) markRemoving(c *ctr, o RemoveOptions) (record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.Volumes && !c.rec.Removing && slices.ContainsFunc(c.rec.Mounts, func(m mountRecord) bool { return m.Anonymous }) {
		c.rec.Removing = true
		if err := e.save(c); err != nil {
			c.rec.Removing = false
			return c.rec, err
		}
	}
	return c.rec, nil
}

// removeFolder deletes what is stored of a container, the record first: what is
// left of the folder is swept up later.
func (e *Engine) removeFolder(rec *record) error {
	dir := e.containerDir(rec.ID)
	if err := removeFile(filepath.Join(dir, "config.json"), !rec.HostConfig.AutoRemove); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		e.log.Warn("remove container's folder", "dir", dir, "error", err)
	}
	return nil
}

// forget takes a container out of the index.
func (e *Engine) forget(c *ctr, name string) {
	e.mu.Lock()
	delete(e.containers, c.id)
	if e.names[name] == c.id {
		delete(e.names, name)
	}
	for id, x := range e.execs {
		if x.ctr == c {
			delete(e.execs, id)
		}
	}
	e.mu.Unlock()
	if c.releaseLayers != nil {
		c.releaseLayers()
	}
}

func (e *Engine) removeAnonymous(ctx context.Context, mounts []mountRecord) {
	for _, m := range mounts {
		if m.Type != mount.TypeVolume || !m.Anonymous {
			continue
		}
		// In use by another container: it stays, as with Docker.
		if err := e.VolumeRemove(ctx, m.Name, true); err != nil {
			e.log.Info("anonymous volume stays", "volume", m.Name, "reason", err)
		}
	}
}

// Prune removes the containers that don't run: filters label, label!, until.
func (e *Engine) Prune(ctx context.Context, f Filters) (container.PruneReport, error) {
	report := container.PruneReport{ContainersDeleted: []string{}}
	if err := f.allow("label", "label!", "until"); err != nil {
		return report, err
	}
	until, err := f.until()
	if err != nil {
		return report, err
	}
	for _, c := range e.all() {
		c.mu.Lock()
		hit := !c.active() && f.labels("label", c.rec.Config.Labels) && f.noLabels("label!", c.rec.Config.Labels) &&
			(until.IsZero() || c.rec.Created.Before(until))
		c.mu.Unlock()
		if !hit {
			continue
		}
		rec := c.view().rec
		size, _, err := e.sizes(ctx, &rec, false)
		if err != nil {
			e.log.Debug("prune", "error", err) // it goes all the same
		}
		if err := e.Remove(ctx, c.id, RemoveOptions{}); err == nil {
			report.ContainersDeleted = append(report.ContainersDeleted, c.id)
			report.SpaceReclaimed += uint64(size)
		}
	}
	slices.Sort(report.ContainersDeleted)
	e.emit(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(report.SpaceReclaimed)})
	return report, nil
}

// ImageUsers lists the containers that were made from an image: all, and those
// that run.
func (e *Engine) ImageUsers(imageID string) (all, running []string) {
	for _, c := range e.all() {
		c.mu.Lock()
		if c.rec.ImageID == imageID {
			all = append(all, c.id)
			if c.active() {
				running = append(running, c.id)
			}
		}
		c.mu.Unlock()
	}
	slices.Sort(all)
	slices.Sort(running)
	return all, running
}

// StartMachine boots the machine; after StopMachine the containers whose policy
// says so come back.
func (e *Engine) StartMachine(ctx context.Context) error {
	_, err := e.session(ctx)
	return err
}

// Resize sets the size of a container's terminal.
func (e *Engine) Resize(ctx context.Context, name string, rows, columns uint32) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return conflict("Container %s is not running", c.id)
	}
	_, err = r.guest.Resize(ctx, &proto.ResizeRequest{Container: c.id, Size: &proto.TerminalSize{Rows: rows, Columns: columns}})
	if err != nil {
		return fmt.Errorf("resize container %s: %s", name, message(err))
	}
	e.emitContainer(c, events.ActionResize, map[string]string{"height": fmt.Sprint(rows), "width": fmt.Sprint(columns)})
	return nil
}
