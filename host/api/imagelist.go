package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"sampan/host/engine"
	"sampan/host/image"
)

func (s *server) imageList(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	for key := range f {
		switch key {
		case "dangling", "label", "label!", "before", "since", "reference", "until":
		default:
			return invalid("invalid filter '%s'", key)
		}
	}
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	q, err := s.imageQuery(f)
	if err != nil {
		return err
	}
	list := []apiimage.Summary{}
	for _, img := range images {
		if !q.match(img) {
			continue
		}
		sum := summary(img)
		if len(f["reference"]) > 0 {
			// An image is shown by the names that were asked for.
			sum.RepoTags, sum.RepoDigests = q.named(img.Tags), q.named(img.Digests)
			if len(sum.RepoTags)+len(sum.RepoDigests) == 0 {
				continue
			}
		}
		list = append(list, sum)
	}
	if boolean(r, "shared-size") {
		shareSizes(list, images, s.Images.LayerSizes())
	}
	if less(clientVersion(r), "1.44") {
		return answer(w, http.StatusOK, withVirtualSize(list))
	}
	return answer(w, http.StatusOK, list)
}

// sized is an image of a list before API 1.44, which had its size twice.
type sized struct {
	apiimage.Summary
	VirtualSize int64
}

func withVirtualSize(list []apiimage.Summary) []sized {
	out := []sized{}
	for _, s := range list {
		out = append(out, sized{s, s.Size})
	}
	return out
}

func summary(img image.Image) apiimage.Summary {
	return apiimage.Summary{
		ID: img.ID, Created: unixOf(img.Created), Size: img.Size, SharedSize: -1, Containers: -1,
		RepoTags: nonNil(img.Tags), RepoDigests: nonNil(img.Digests), Labels: img.Config.Config.Labels,
	}
}

// unixOf is a time in seconds; 0 when it isn't known.
func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// shareSizes enters what of each image's size other images have too.
func shareSizes(list []apiimage.Summary, images []image.Image, sizes map[string]int64) {
	users, layers := map[string]int{}, map[string][]string{}
	for _, img := range images {
		layers[img.ID] = img.DiffIDs
		for _, d := range slices.Compact(slices.Sorted(slices.Values(img.DiffIDs))) {
			users[d]++
		}
	}
	for i := range list {
		list[i].SharedSize = 0
		for _, d := range slices.Compact(slices.Sorted(slices.Values(layers[list[i].ID]))) {
			if users[d] > 1 {
				list[i].SharedSize += sizes[d]
			}
		}
	}
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// imageQuery is what filters ask of images.
type imageQuery struct {
	f             engine.Filters
	dangling      *bool
	before, since time.Time // zero: not asked
	until         time.Time
}

func (s *server) imageQuery(f engine.Filters) (*imageQuery, error) {
	q := &imageQuery{f: f}
	if vals := f["dangling"]; len(vals) > 0 {
		on := vals[0] == "true" || vals[0] == "1"
		if !on && vals[0] != "false" && vals[0] != "0" {
			return nil, invalid("invalid filter 'dangling=[%s]'", vals[0])
		}
		q.dangling = &on
	}
	for key, at := range map[string]*time.Time{"before": &q.before, "since": &q.since} {
		for _, name := range f[key] {
			other, err := s.Images.Get(name)
			if err != nil {
				return nil, err
			}
			if at.IsZero() || key == "before" == other.Created.Before(*at) {
				*at = other.Created
			}
		}
	}
	if vals := f["until"]; len(vals) > 0 {
		if len(vals) > 1 {
			return nil, invalid("more than one until filter specified")
		}
		t, err := engine.ParseTime(vals[0], time.Now())
		if err != nil {
			return nil, err
		}
		q.until = t
	}
	return q, nil
}

func (q *imageQuery) match(img image.Image) bool {
	if q.dangling != nil {
		switch none := len(img.Tags)+len(img.Digests) == 0; {
		case *q.dangling && len(img.Tags) > 0, !*q.dangling && none:
			return false
		}
	}
	switch {
	case !q.before.IsZero() && !img.Created.Before(q.before),
		!q.since.IsZero() && !img.Created.After(q.since),
		!q.until.IsZero() && img.Created.After(q.until):
		return false
	}
	has := func(v string) bool {
		name, value, exact := strings.Cut(v, "=")
		got, ok := img.Config.Config.Labels[name]
		return ok && (!exact || got == value)
	}
	return !slices.ContainsFunc(q.f["label"], func(v string) bool { return !has(v) }) && !slices.ContainsFunc(q.f["label!"], has)
}

// named picks the names that match a filter "reference".
func (q *imageQuery) named(names []string) []string {
	list := []string{}
	for _, name := range names {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(q.f["reference"], func(pattern string) bool {
			ok, err := reference.FamiliarMatch(pattern, ref)
			return ok && err == nil
		}) {
			list = append(list, name)
		}
	}
	return list
}

// imageGet is GET /images/NAME/json, /history and /get; a name has slashes of
// its own.
func (s *server) imageGet(w http.ResponseWriter, r *http.Request) error {
	path := r.PathValue("name")
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return notSupported(r)
	}
	name := path[:i]
	if path[i:] == "/get" {
		return s.imageSave(w, r, []string{name})
	}
	if path[i:] != "/json" && path[i:] != "/history" {
		return notSupported(r)
	}
	img, err := s.Images.Get(name)
	if err != nil {
		return err
	}
	if v := r.FormValue("platform"); v != "" {
		p, err := parsePlatform(v)
		if err != nil {
			return err
		}
		if p.OS != img.Config.OS || p.Architecture != img.Config.Architecture {
			return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("image with reference %s was found but does not provide the specified platform (%s/%s)", name, p.OS, p.Architecture))
		}
	}
	if path[i:] == "/history" {
		return s.imageHistory(w, img)
	}
	return s.imageInspect(w, r, img)
}

// inspected has the fields of older versions of the API beside today's.
type inspected struct {
	apiimage.InspectResponse
	Parent        *string `json:",omitempty"`
	DockerVersion *string `json:",omitempty"`
	VirtualSize   *int64  `json:",omitempty"`
}

func (s *server) imageInspect(w http.ResponseWriter, r *http.Request, img image.Image) error {
	var config struct {
		dockerspec.DockerOCIImage
		Comment       string `json:"comment"`
		DockerVersion string `json:"docker_version"`
	}
	if err := json.Unmarshal(img.RawConfig, &config); err != nil {
		return fmt.Errorf("image %s: configuration: %w", img.ID, err)
	}
	comment := config.Comment
	if n := len(config.History); comment == "" && n > 0 {
		comment = config.History[n-1].Comment
	}
	resp := inspected{InspectResponse: apiimage.InspectResponse{
		ID: img.ID, RepoTags: nonNil(img.Tags), RepoDigests: nonNil(img.Digests),
		Comment: comment, Author: config.Author, Config: &config.Config,
		Architecture: config.Architecture, Variant: config.Variant, Os: config.OS, OsVersion: config.OSVersion,
		Size: img.Size, GraphDriver: &storage.DriverData{Name: "overlay2", Data: map[string]string{}},
		RootFS:   apiimage.RootFS{Type: "layers", Layers: img.DiffIDs},
		Metadata: apiimage.Metadata{LastTagTime: img.Tagged},
	}}
	if !img.Created.IsZero() {
		resp.Created = img.Created.Format(time.RFC3339Nano)
	}
	if v := clientVersion(r); less(v, "1.52") {
		resp.Parent, resp.DockerVersion = new(string), &config.DockerVersion
		if less(v, "1.44") {
			resp.VirtualSize = &img.Size
		}
	}
	return answer(w, http.StatusOK, resp)
}

// imageHistory lists how an image came about, the last step first.
func (s *server) imageHistory(w http.ResponseWriter, img image.Image) error {
	sizes, layer := s.Images.LayerSizes(), 0
	list := []apiimage.HistoryResponseItem{}
	for _, h := range img.Config.History {
		item := apiimage.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = unixOf(*h.Created)
		}
		if !h.EmptyLayer && layer < len(img.DiffIDs) {
			item.Size = sizes[img.DiffIDs[layer]]
			layer++
		}
		list = append(list, item)
	}
	// Layers that nobody has told the story of.
	for ; layer < len(img.DiffIDs); layer++ {
		list = append(list, apiimage.HistoryResponseItem{ID: "<missing>", Created: unixOf(img.Created), Size: sizes[img.DiffIDs[layer]]})
	}
	slices.Reverse(list)
	if len(list) > 0 {
		list[0].ID, list[0].Tags = img.ID, img.Tags
	}
	return answer(w, http.StatusOK, list)
}

// imagePrune is POST /images/prune: dangling images, or with dangling=false all
// that no container uses.
func (s *server) imagePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filters(r)
	if err != nil {
		return err
	}
	for key := range f {
		switch key {
		case "dangling", "label", "label!", "until":
		default:
			return invalid("invalid filter '%s'", key)
		}
	}
	q, err := s.imageQuery(f)
	if err != nil {
		return err
	}
	all := q.dangling != nil && !*q.dangling
	q.dangling = nil
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	report := apiimage.PruneReport{}
	sizes := s.Images.LayerSizes()
	for _, img := range images {
		if !q.match(img) {
			continue
		}
		for _, name := range image.Unneeded(img, all) {
			steps, layers, err := s.removeImage(name, false)
			if err != nil {
				continue // in use, or gone meanwhile
			}
			report.ImagesDeleted = append(report.ImagesDeleted, steps...)
			for _, diffID := range layers {
				report.SpaceReclaimed += uint64(sizes[diffID])
			}
		}
	}
	if len(report.ImagesDeleted) > 0 {
		s.Engine.LayersRemoved()
	}
	s.Engine.Emit(events.ImageEventType, events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(report.SpaceReclaimed)})
	return answer(w, http.StatusOK, report)
}
