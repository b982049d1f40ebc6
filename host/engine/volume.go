package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
)

// anonymousLabel marks volumes that nobody named, as Docker does.
const anonymousLabel = "com.docker.volume.anonymous"

// volumeRecord is what is stored of a volume: $SAMPAN_HOME/volumes/ID.json.
// The ID is its directory in the guest.
type volumeRecord struct {
	ID      string
	Name    string
	Created time.Time
	Labels  map[string]string
	// Size in bytes, when it was last measured; nothing has changed since if
	// Measured is true. Engine.mu guards these.
	Size     int64
	Measured bool

	uses    int // by containers that run or whose files are copied
	changes int // counts beginnings and ends of uses
	// loans are its exports and imports under way, which a removal ends.
	loans map[*loan]struct{}
}

func (v *volumeRecord) api() volume.Volume {
	return volume.Volume{
		Name: v.Name, Driver: "local", Scope: "local", Labels: v.Labels,
		Mountpoint: "/data/volumes/" + v.ID + "/_data",
		CreatedAt:  v.Created.Format(time.RFC3339),
		Options:    nil,
	}
}

func (e *Engine) volumePath(id string) string {
	return filepath.Join(e.cfg.Home, "volumes", id+".json")
}

func (e *Engine) loadVolumes() error {
	files, err := filepath.Glob(e.volumePath("*"))
	if err != nil {
		return err
	}
	for _, f := range files {
		v := new(volumeRecord)
		if err := readJSON(f, v); err != nil || v.ID+".json" != filepath.Base(f) {
			e.log.Error("volume's record is damaged: left alone", "file", f, "error", err)
			continue
		}
		if old := e.volumes[v.Name]; old != nil { // a crash in VolumeRemove
			if old.Created.After(v.Created) {
				old, v = v, old
			}
			if err := e.purges.add(purge{Volume: old.ID}); err != nil {
				return err
			}
			os.Remove(e.volumePath(old.ID))
		}
		if e.purges.has(purge{Volume: v.ID}) { // the same, a little earlier
			os.Remove(f)
			continue
		}
		e.volumes[v.Name] = v
	}
	return nil
}

// VolumeCreate makes a volume, or returns the one of that name. It never boots
// the machine.
func (e *Engine) VolumeCreate(req volume.CreateRequest) (volume.Volume, error) {
	switch {
	case req.Driver != "" && req.Driver != "local":
		return volume.Volume{}, notFound("error looking up volume plugin %s: plugin %q not found", req.Driver, req.Driver)
	case len(req.DriverOpts) > 0:
		return volume.Volume{}, unsupported("DriverOpts of a volume")
	case req.ClusterVolumeSpec != nil:
		return volume.Volume{}, unsupported("ClusterVolumeSpec")
	case req.Name != "" && !volumeName.MatchString(req.Name):
		return volume.Volume{}, invalid("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", req.Name, req.Name)
	}
	v, err := e.volume(req.Name, req.Labels)
	if err != nil {
		return volume.Volume{}, err
	}
	return v.api(), nil
}

// volume finds or makes a volume; without a name an anonymous one.
func (e *Engine) volume(name string, labels map[string]string) (*volumeRecord, error) {
	if name == "" {
		name = newID()
		merged := map[string]string{anonymousLabel: ""}
		for k, v := range labels {
			merged[k] = v
		}
		labels = merged
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if v := e.volumes[name]; v != nil {
		return v, nil
	}
	v := &volumeRecord{ID: newID(), Name: name, Created: time.Now().UTC(), Labels: labels, Measured: true}
	return v, e.addVolume(v)
}

// addVolume stores a new volume; the caller holds mu.
func (e *Engine) addVolume(v *volumeRecord) error {
	// An anonymous volume goes with its container: it needs no fsync.
	_, anonymous := v.Labels[anonymousLabel]
	if err := writeJSON(e.tmp(), e.volumePath(v.ID), v, !anonymous); err != nil {
		return fmt.Errorf("store volume %s: %w", v.Name, err)
	}
	e.volumes[v.Name] = v
	e.emit(events.VolumeEventType, events.ActionCreate, v.Name, map[string]string{"driver": "local"})
	return nil
}

// VolumeInspect describes a volume.
func (e *Engine) VolumeInspect(name string) (volume.Volume, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.volumes[name]
	if v == nil {
		return volume.Volume{}, notFound("get %s: no such volume", name)
	}
	return v.api(), nil
}

// VolumeList lists the volumes that match: name, label, dangling, driver.
func (e *Engine) VolumeList(f Filters) ([]volume.Volume, error) {
	if err := f.allow("name", "label", "dangling", "driver"); err != nil {
		return nil, err
	}
	dangling, hasDangling, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	used := e.VolumeUsers()
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []volume.Volume{}
	for _, v := range e.volumes {
		if !f.contains("name", v.Name) || !f.labels("label", v.Labels) || !f.equal("driver", "local") {
			continue
		}
		if hasDangling && dangling == (len(used[v.Name]) > 0) {
			continue
		}
		out = append(out, v.api())
	}
	slices.SortFunc(out, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// VolumeUsers maps volumes to the containers that mount them.
func (e *Engine) VolumeUsers() map[string][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usersLocked()
}

func (e *Engine) usersLocked() map[string][]string {
	used := map[string][]string{}
	for _, c := range e.containers {
		c.mu.Lock()
		for _, m := range c.rec.Mounts {
			// A container that is on its way out does not keep its own ones.
			if m.Type == mount.TypeVolume && !(m.Anonymous && c.rec.Removing) {
				used[m.Name] = append(used[m.Name], c.id)
			}
		}
		c.mu.Unlock()
	}
	return used
}

// VolumeRemove removes a volume that no container mounts. It never boots the
// machine: the files go at its next boot, and can't be reached until then.
func (e *Engine) VolumeRemove(ctx context.Context, name string, force bool) error {
	e.mu.Lock()
	v := e.volumes[name]
	if v == nil {
		e.mu.Unlock()
		if force {
			return nil
		}
		return notFound("get %s: no such volume", name)
	}
	if users := e.usersLocked()[name]; len(users) > 0 {
		e.mu.Unlock()
		return conflict("remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	delete(e.volumes, name)
	e.mu.Unlock()
	// What the guest still did with the files would make them anew. The record
	// goes last: a crash leaves a volume that may be empty, never files that
	// nothing refers to.
	err := e.recall(ctx, v)
	if err == nil {
		err = e.discard(ctx, purge{Volume: v.ID})
	}
	if err != nil {
		e.mu.Lock()
		if e.volumes[name] == nil { // still there, then
			e.volumes[name] = v
		}
		e.mu.Unlock()
		return err
	}
	_, anonymous := v.Labels[anonymousLabel]
	if err := removeFile(e.volumePath(v.ID), !anonymous); err != nil {
		return err
	}
	e.emit(events.VolumeEventType, events.ActionDestroy, name, map[string]string{"driver": "local"})
	return nil
}

// VolumePrune removes the anonymous volumes that no container mounts, or with
// the filter all=true any.
func (e *Engine) VolumePrune(ctx context.Context, f Filters) (volume.PruneReport, error) {
	report := volume.PruneReport{VolumesDeleted: []string{}}
	if err := f.allow("label", "label!", "all"); err != nil {
		return report, err
	}
	all, _, err := f.boolean("all")
	if err != nil {
		return report, err
	}
	used := e.VolumeUsers()
	sizes := e.VolumeSizes(ctx)
	e.mu.Lock()
	var names []string
	for _, v := range e.volumes {
		_, anonymous := v.Labels[anonymousLabel]
		if len(used[v.Name]) == 0 && (all || anonymous) && f.labels("label", v.Labels) && f.noLabels("label!", v.Labels) {
			names = append(names, v.Name)
		}
	}
	e.mu.Unlock()
	slices.Sort(names)
	for _, name := range names {
		if err := e.VolumeRemove(ctx, name, true); err == nil {
			report.VolumesDeleted = append(report.VolumesDeleted, name)
			report.SpaceReclaimed += uint64(max(sizes[name], 0))
		}
	}
	e.emit(events.VolumeEventType, events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(report.SpaceReclaimed)})
	return report, nil
}
