package engine

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"sampan/proto"
)

// Commit is what an image is made of.
type Commit struct {
	ImageID string // of the container
	Config  *container.Config
	// CreatedBy is the container's command.
	CreatedBy string
	// Layer is the container's, a tar with whiteouts. The caller closes the
	// Commit.
	Layer io.ReadCloser

	unpause func()
}

// Close ends the commit. Idempotent.
func (c *Commit) Close() error {
	err := c.Layer.Close()
	c.unpause()
	return err
}

// Commit reads what a container has changed. With pause the container stands
// still meanwhile. What cfg leaves open is as the container has it.
func (e *Engine) Commit(ctx context.Context, name string, cfg *container.Config, pause bool) (*Commit, error) {
	b, err := e.borrow(ctx, name, false)
	if err != nil {
		return nil, err
	}
	mergeImage(cfg, b.rec.Config)
	out := &Commit{ImageID: b.rec.ImageID, Config: cfg, CreatedBy: strings.Join(b.rec.Config.Cmd, " "), unpause: func() {}}
	paused := false
	if pause {
		err := e.Pause(ctx, b.rec.ID)
		if err != nil && !errdefs.IsConflict(err) { // it need not run
			b.end()
			return nil, err
		}
		paused = err == nil
	}
	if paused {
		id := b.rec.ID
		out.unpause = func() {
			if err := e.Unpause(context.WithoutCancel(ctx), id); err != nil {
				e.log.Debug("unpause container after its commit", "id", id, "error", err)
			}
			out.unpause = func() {}
		}
	}
	out.Layer, err = b.pack(&proto.PackRequest{What: proto.PackRequest_LAYER}, func(err error) error { return fileError(err, name, "/") })
	if err != nil {
		out.unpause()
		return nil, err
	}
	return out, nil
}

// Committed tells of an image that was made.
func (e *Engine) Committed(name, imageID, ref string) {
	if c, err := e.find(name); err == nil {
		attrs := map[string]string{"imageID": imageID}
		if ref != "" {
			attrs["imageRef"] = ref
		}
		e.emitContainer(c, events.ActionCommit, attrs)
	}
}

// sizes are what a container has written, and that with its image. Where nobody
// knows without booting the machine it is 0, unless boot allows that.
func (e *Engine) sizes(ctx context.Context, rec *record, boot bool) (rw, root int64, err error) {
	if img, err := e.cfg.Image(rec.ImageID); err == nil {
		root = img.Size
	}
	if !rec.Started || !boot && e.machine.Running() == nil {
		return 0, root, nil
	}
	b, err := e.borrow(ctx, rec.ID, false)
	if err != nil {
		return 0, 0, err
	}
	defer b.end()
	res, err := b.guest.Changes(b.ctx, &proto.ChangesRequest{Files: b.files, SizeOnly: true})
	if b.ctx.Err() != nil && ctx.Err() == nil { // it was removed meanwhile
		return 0, 0, notFound("No such container: %s", rec.Name)
	}
	if err != nil {
		return 0, 0, errors.New("size of container " + rec.Name + ": " + message(err))
	}
	return res.Size, root + res.Size, nil
}
