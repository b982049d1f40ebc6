package api

import (
	"net/http"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"sampan/host/engine"
)

// diskUsage is GET /system/df.
func (s *server) diskUsage(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return invalid("%v", err)
	}
	want := func(o system.DiskUsageObject) bool {
		return len(r.Form["type"]) == 0 || slices.Contains(r.Form["type"], string(o))
	}
	for _, t := range r.Form["type"] {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
		default:
			return invalid("unknown object type: %s", t)
		}
	}
	old := less(clientVersion(r), "1.52")
	var du system.DiskUsage
	var err error
	if want(system.ImageObject) {
		if du.ImageUsage, err = s.imageUsage(); err != nil {
			return err
		}
	}
	if want(system.ContainerObject) {
		if du.ContainerUsage, err = s.containerUsage(r); err != nil {
			return err
		}
	}
	if want(system.VolumeObject) {
		if du.VolumeUsage, err = s.volumeUsage(r); err != nil {
			return err
		}
	}
	if want(system.BuildCacheObject) {
		du.BuildCacheUsage = &build.DiskUsage{}
	}
	if old {
		return answer(w, http.StatusOK, legacyUsage(du, clientVersion(r)))
	}
	if !boolean(r, "verbose") {
		if u := du.ImageUsage; u != nil {
			u.Items = nil
		}
		if u := du.ContainerUsage; u != nil {
			u.Items = nil
		}
		if u := du.VolumeUsage; u != nil {
			u.Items = nil
		}
	}
	return answer(w, http.StatusOK, du)
}

// legacyUsage is the answer before version 1.52 of the API.
func legacyUsage(du system.DiskUsage, version string) any {
	var old struct {
		LayersSize int64
		Images     any
		Containers []container.Summary
		Volumes    []volume.Volume
		BuildCache []build.CacheRecord
	}
	if u := du.ImageUsage; u != nil {
		old.LayersSize, old.Images = u.TotalSize, u.Items
		if less(version, "1.44") {
			old.Images = withVirtualSize(u.Items)
		}
	}
	if u := du.ContainerUsage; u != nil {
		old.Containers = u.Items
	}
	if u := du.VolumeUsage; u != nil {
		old.Volumes = u.Items
	}
	return old
}

// imageUsage counts every layer once; images without containers could go.
func (s *server) imageUsage() (*apiimage.DiskUsage, error) {
	images, err := s.Images.List()
	if err != nil {
		return nil, err
	}
	sizes := s.Images.LayerSizes()
	u := &apiimage.DiskUsage{TotalCount: int64(len(images)), Items: []apiimage.Summary{}}
	needed := map[string]bool{}
	for _, img := range images {
		sum := summary(img)
		all, _ := s.Engine.ImageUsers(img.ID)
		sum.Containers = int64(len(all))
		if len(all) > 0 {
			u.ActiveCount++
			for _, d := range img.DiffIDs {
				needed[d] = true
			}
		}
		u.Items = append(u.Items, sum)
	}
	shareSizes(u.Items, images, sizes)
	for d, size := range sizes {
		u.TotalSize += size
		if !needed[d] {
			u.Reclaimable += size
		}
	}
	return u, nil
}

func (s *server) containerUsage(r *http.Request) (*container.DiskUsage, error) {
	list, err := s.Engine.List(r.Context(), engine.ListOptions{All: true, Size: true})
	if errdefs.IsNotImplemented(err) {
		list, err = s.Engine.List(r.Context(), engine.ListOptions{All: true})
	}
	if err != nil {
		return nil, err
	}
	u := &container.DiskUsage{TotalCount: int64(len(list)), Items: list}
	for _, c := range list {
		u.TotalSize += c.SizeRw
		switch c.State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += c.SizeRw
		}
	}
	return u, nil
}

func (s *server) volumeUsage(r *http.Request) (*volume.DiskUsage, error) {
	list, err := s.Engine.VolumeList(nil)
	if err != nil {
		return nil, err
	}
	users := s.Engine.VolumeUsers()
	sizes := s.Engine.VolumeSizes(r.Context())
	u := &volume.DiskUsage{TotalCount: int64(len(list)), Items: list}
	for i, v := range list {
		size, known := sizes[v.Name]
		if !known {
			size = -1
		}
		v.UsageData = &volume.UsageData{Size: size, RefCount: int64(len(users[v.Name]))}
		u.Items[i] = v
		if v.UsageData.RefCount > 0 {
			u.ActiveCount++
		} else if v.UsageData.Size > 0 {
			u.Reclaimable += v.UsageData.Size
		}
		if v.UsageData.Size > 0 {
			u.TotalSize += v.UsageData.Size
		}
	}
	return u, nil
}

// buildPrune is POST /build/prune. Nothing is built here: there is no cache.
func (s *server) buildPrune(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, build.CachePruneReport{})
}
