package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// useVolumes notes that a container's volumes are in use until unuse is called,
// and may have another size afterwards.
func (e *Engine) useVolumes(ms []mountRecord) (unuse func()) {
	var used []*volumeRecord
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range ms {
		if v := e.volumes[m.Name]; m.Type == mount.TypeVolume && v != nil && v.ID == m.VolumeID {
			used = append(used, v)
			v.uses++
			e.changedLocked(v)
		}
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, v := range used {
			v.uses--
			e.changedLocked(v)
		}
	}
}

// changedLocked notes that a volume's size is not known any more.
func (e *Engine) changedLocked(v *volumeRecord) {
	v.changes++
	if v.Measured {
		v.Measured = false
		e.storeSize(v)
	}
}

// storeSize stores a record for its size, unless the volume is gone. What a power
// cut takes of that is no loss, and an error no reason to fail: the size is
// measured once more.
func (e *Engine) storeSize(v *volumeRecord) {
	if e.volumes[v.Name] != v {
		return
	}
	if err := writeJSON(e.tmp(), e.volumePath(v.ID), v, false); err != nil {
		e.log.Warn("size of a volume is not stored", "volume", v.Name, "error", err)
	}
}

// VolumeSizes tells the volumes' sizes in bytes, by name. It boots the machine
// only when one may have changed since it was last measured. A volume is missing
// when the guest can't tell.
func (e *Engine) VolumeSizes(ctx context.Context) map[string]int64 {
	type measured struct {
		v       *volumeRecord
		changes int
	}
	var unknown []measured
	req := new(proto.VolumeSizesRequest)
	sizes := map[string]int64{}
	e.mu.Lock()
	for _, v := range e.volumes {
		if v.Measured {
			sizes[v.Name] = v.Size
			continue
		}
		unknown = append(unknown, measured{v, v.changes})
		req.Names = append(req.Names, v.ID)
	}
	e.mu.Unlock()
	if len(unknown) == 0 {
		return sizes
	}
	defer e.machine.Hold()()
	var res *proto.VolumeSizesResponse
	g, err := e.session(ctx)
	if err == nil {
		res, err = g.VolumeSizes(ctx, req)
	}
	if err != nil || len(res.Sizes) != len(unknown) {
		e.log.Warn("sizes of volumes", "error", err)
		return sizes
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, m := range unknown {
		sizes[m.v.Name] = res.Sizes[i]
		if m.v.uses == 0 && m.v.changes == m.changes {
			m.v.Size, m.v.Measured = res.Sizes[i], true
			e.storeSize(m.v)
		}
	}
	return sizes
}

// emitMounts tells that a container's volumes are mounted.
func (e *Engine) emitMounts(c *ctr) {
	for _, m := range c.rec.Mounts { // not modified
		if m.Type == mount.TypeVolume {
			e.emit(events.VolumeEventType, events.ActionMount, m.Name, map[string]string{
				"driver": "local", "container": c.id, "destination": m.Destination,
				"read/write": strconv.FormatBool(m.RW), "propagation": string(m.Propagation),
			})
		}
	}
}

// emitUnmounts tells that they are not any more.
func (e *Engine) emitUnmounts(c *ctr) {
	for _, m := range c.rec.Mounts {
		if m.Type == mount.TypeVolume {
			e.emit(events.VolumeEventType, events.ActionUnmount, m.Name, map[string]string{"driver": "local", "container": c.id})
		}
	}
}

// loan is a use of a volume's files by the host.
type loan struct {
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the guest does nothing with them any more
}

// borrowVolume makes a volume's files available in the guest, booting the machine
// if need be. Removing the volume ends the use.
func (e *Engine) borrowVolume(ctx context.Context, name string) (*borrowed, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	l := &loan{cancel, make(chan struct{})}
	e.mu.Lock()
	v := e.volumes[name]
	if v == nil {
		e.mu.Unlock()
		cancel(nil)
		return nil, notFound("get %s: no such volume", name)
	}
	if v.loans == nil {
		v.loans = map[*loan]struct{}{}
	}
	v.loans[l] = struct{}{}
	v.uses++
	e.changedLocked(v)
	e.mu.Unlock()
	hold := e.machine.Hold()
	b := &borrowed{
		ctx: ctx, files: &proto.Files{Id: v.ID, Volume: true},
		end: sync.OnceFunc(func() {
			cancel(nil)
			e.mu.Lock()
			v.uses--
			e.changedLocked(v)
			delete(v.loans, l)
			e.mu.Unlock()
			close(l.ended)
			hold()
		}),
	}
	var err error
	if b.guest, err = e.session(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		b.end()
		return nil, err
	}
	return b, nil
}

// recallTimeout bounds the end of all loans of a volume.
const recallTimeout = 30 * time.Second

// recall ends the loans of a volume that e.volumes has no longer, and waits for
// their ends.
func (e *Engine) recall(ctx context.Context, v *volumeRecord) error {
	e.mu.Lock()
	loans := slices.Collect(maps.Keys(v.loans))
	e.mu.Unlock()
	for _, l := range loans {
		l.cancel(conflict("volume %s was removed", v.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, recallTimeout)
	defer cancel()
	for _, l := range loans {
		select {
		case <-l.ended:
		case <-ctx.Done():
			return fmt.Errorf("remove volume %s: end a copy of its files: %w", v.Name, ctx.Err())
		}
	}
	return nil
}

// VolumeExport returns a tar of a volume's files. The caller closes it.
func (e *Engine) VolumeExport(ctx context.Context, name string) (io.ReadCloser, error) {
	b, err := e.borrowVolume(ctx, name)
	if err != nil {
		return nil, err
	}
	return b.pack(&proto.PackRequest{What: proto.PackRequest_PATH, Path: "/."}, volumeError(name))
}

// VolumeImport unpacks a tar in a volume, over what it has. The volume is made
// when missing.
func (e *Engine) VolumeImport(ctx context.Context, name string, tar io.Reader) error {
	if _, err := e.VolumeCreate(volume.CreateRequest{Name: name}); err != nil {
		return err
	}
	b, err := e.borrowVolume(ctx, name)
	if err != nil {
		return err
	}
	defer b.end()
	return b.unpack(&proto.UnpackRequest{Path: "/"}, tar, volumeError(name))
}

// volumeError puts the guest's error about a volume's files into words.
func volumeError(name string) func(error) error {
	return func(err error) error {
		text := "volume " + name + ": " + message(err)
		if status.Code(err) == codes.InvalidArgument {
			return invalid("%s", text)
		}
		return errors.New(text)
	}
}
