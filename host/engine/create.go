package engine

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

var containerName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// Create makes a container. It never boots the machine. The request's parts
// are taken over.
func (e *Engine) Create(ctx context.Context, name string, req container.CreateRequest) (container.CreateResponse, error) {
	none := container.CreateResponse{}
	if req.Config == nil {
		return none, invalid("config cannot be empty in order to create a container")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if err := checkRequest(&req); err != nil {
		return none, err
	}
	if err := e.checkCPUs(&req.HostConfig.Resources); err != nil {
		return none, err
	}
	if name != "" && !containerName.MatchString(name) {
		return none, invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if err := e.nameOwners(req.HostConfig); err != nil {
		return none, err
	}
	img, release, err := e.image(req.Config.Image)
	if err != nil {
		return none, err
	}
	defer func() {
		if release != nil {
			release()
		}
	}()
	if img.Arch != "" && img.Arch != e.cfg.Arch {
		return none, notFound("image with reference %s was found but does not provide the specified platform (linux/%s)", req.Config.Image, e.cfg.Arch)
	}
	rec := record{
		ID: newID(), Name: strings.TrimPrefix(name, "/"), Created: time.Now().UTC(),
		ImageID: img.ID, Layers: img.Layers, Config: req.Config, HostConfig: req.HostConfig,
		State: state{Status: container.StateCreated},
	}
	warnings := append(discard(&req.HostConfig.Resources), e.spaceWarnings()...)
	if h := req.HostConfig; h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if err := fill(&rec, img.Config); err != nil {
		return none, err
	}
	if rec.Networks, err = e.attachments(rec.HostConfig, req.NetworkingConfig); err != nil {
		return none, err
	}
	if err := e.planLinks(&rec); err != nil {
		return none, err
	}
	borrowed, err := e.borrowMounts(rec.HostConfig.VolumesFrom)
	if err != nil {
		return none, err
	}
	if rec.Mounts, err = planMounts(rec.Config, rec.HostConfig, borrowed); err != nil {
		return none, err
	}
	// What only start would find: better refused now.
	if _, err := makeSpec(specInput{ID: rec.ID, Arch: e.cfg.Arch, Config: rec.Config, Host: rec.HostConfig, Args: rec.Args}); err != nil {
		return none, err
	}
	if _, err := e.netFiles(&rec, nil, nil); err != nil {
		return none, err
	}
	if err := e.register(&rec, release); err != nil {
		return none, err
	}
	release = nil // the container's now
	return container.CreateResponse{ID: rec.ID, Warnings: warnings}, nil
}

// discard takes away what the guest's kernel can't do and Docker does without,
// too, with the warnings that Docker gives. The list is never nil.
func discard(r *container.Resources) []string {
	warnings := []string{}
	if r.BlkioWeight != 0 {
		r.BlkioWeight = 0
		warnings = append(warnings, "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
	}
	return warnings
}

// image finds an image and holds its layers.
func (e *Engine) image(ref string) (img Image, release func(), err error) {
	if ref == "" {
		return img, nil, invalid("image name is empty")
	}
	if img, err = e.cfg.Image(ref); err != nil {
		return img, nil, err
	}
	release = e.cfg.HoldLayers(img.Layers)
	// Between the two it may have been removed.
	if img, err = e.cfg.Image(ref); err != nil {
		release()
		return img, nil, err
	}
	return img, release, nil
}

// fill completes a request from the image and from Docker's defaults.
func fill(rec *record, img *container.Config) error {
	cfg, h := rec.Config, rec.HostConfig
	if img != nil {
		mergeImage(cfg, img)
	}
	if err := checkHealth(cfg.Healthcheck); err != nil { // the image's, too
		return err
	}
	rec.Args = append(slices.Clone(cfg.Entrypoint), cfg.Cmd...)
	if len(rec.Args) == 0 || rec.Args[0] == "" && len(rec.Args) == 1 {
		return invalid("no command specified")
	}
	if cfg.Hostname == "" {
		cfg.Hostname = rec.ID[:12]
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = "/"
	}
	// Docker's words for "no limit" and "as it comes" are kept as nothing.
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShmSize
	}
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = container.IPCModePrivate
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory // as much swap as memory
	}
	if len(cfg.Volumes) == 0 {
		cfg.Volumes = nil
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.MaskedPaths == nil && !h.Privileged {
		h.MaskedPaths = maskedPaths
	}
	if h.ReadonlyPaths == nil && !h.Privileged {
		h.ReadonlyPaths = readonlyPaths
	}
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
	for port := range h.PortBindings {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	return nil
}

// mergeImage fills what the request leaves open. An entrypoint in the request
// drops the image's command too.
func mergeImage(cfg, img *container.Config) {
	if cfg.User == "" {
		cfg.User = img.User
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = img.WorkingDir
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = img.StopSignal
	}
	cfg.Healthcheck = mergeHealth(cfg.Healthcheck, img.Healthcheck)
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = img.Cmd
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = img.Entrypoint
		}
	}
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil // --entrypoint ""
	}
	for _, kv := range img.Env {
		key, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(cfg.Env, func(e string) bool { return e == key || strings.HasPrefix(e, key+"=") }) {
			cfg.Env = append(cfg.Env, kv)
		}
	}
	for port := range img.ExposedPorts {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	for dst := range img.Volumes {
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		cfg.Volumes[dst] = struct{}{}
	}
	for k, v := range img.Labels {
		if cfg.Labels == nil {
			cfg.Labels = map[string]string{}
		}
		if _, ok := cfg.Labels[k]; !ok {
			cfg.Labels[k] = v
		}
	}
}

// register reserves the name, stores the record and makes the volumes: named
// ones first, which may be others' as well and stay whatever happens, anonymous
// ones last, which completeCreates makes after a crash.
func (e *Engine) register(rec *record, release func()) (err error) {
	if err := e.reserveName(rec); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.mu.Lock()
			delete(e.names, rec.Name)
			delete(e.containers, rec.ID)
			e.mu.Unlock()
			os.RemoveAll(e.containerDir(rec.ID))
			e.removeAnonymous(context.Background(), rec.Mounts)
		}
	}()
	if err := e.nameVolumes(rec); err != nil {
		return err
	}
	if err := os.Mkdir(e.containerDir(rec.ID), 0o700); err != nil {
		return err
	}
	c := e.newCtr(*rec)
	c.releaseLayers = release
	if err := e.save(c); err != nil {
		return err
	}
	if !rec.HostConfig.AutoRemove {
		if err := syncDir(filepath.Dir(e.containerDir(rec.ID))); err != nil {
			return err
		}
	}
	e.mu.Lock()
	for i := range rec.Mounts {
		if m := &rec.Mounts[i]; m.Type == mount.TypeVolume && m.Anonymous {
			if err := e.addVolume(anonymousVolume(m, rec.HostConfig)); err != nil {
				e.mu.Unlock()
				return err
			}
		}
	}
	for _, m := range rec.Mounts {
		if v := e.volumes[m.Name]; m.Type == mount.TypeVolume && (v == nil || v.ID != m.VolumeID) {
			e.mu.Unlock()
			return conflict("volume %s was removed meanwhile", m.Name)
		}
	}
	e.containers[rec.ID] = c
	e.mu.Unlock()
	e.emitContainer(c, events.ActionCreate, nil)
	return nil
}

// nameVolumes finds or makes the named volumes, and names the others.
func (e *Engine) nameVolumes(rec *record) error {
	for i := range rec.Mounts {
		m := &rec.Mounts[i]
		if m.Type != mount.TypeVolume {
			continue
		}
		v := &volumeRecord{ID: newID(), Name: newID()}
		if m.Anonymous = m.Name == ""; !m.Anonymous {
			var err error
			if v, err = e.volume(m.Name, mountLabels(rec.HostConfig, m.Destination)); err != nil {
				return err
			}
		}
		m.Name, m.VolumeID, m.Source = v.Name, v.ID, v.api().Mountpoint
	}
	return nil
}

// anonymousVolume is the record of a container's own volume.
func anonymousVolume(m *mountRecord, h *container.HostConfig) *volumeRecord {
	labels := map[string]string{anonymousLabel: ""}
	maps.Copy(labels, mountLabels(h, m.Destination))
	return &volumeRecord{ID: m.VolumeID, Name: m.Name, Created: time.Now().UTC(), Labels: labels, Measured: true}
}

// mountLabels are the labels that a request gives a volume made for a mount.
func mountLabels(h *container.HostConfig, dst string) map[string]string {
	for _, m := range h.Mounts {
		if m.Target == dst && m.VolumeOptions != nil {
			return m.VolumeOptions.Labels
		}
	}
	return nil
}

func (e *Engine) reserveName(rec *record) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for tries := 0; rec.Name == ""; tries++ {
		name := newName()
		if tries > 10 {
			name += rec.ID[:6]
		}
		if _, taken := e.names[name]; !taken {
			rec.Name = name
		}
	}
	return e.nameLocked(rec.Name, rec.ID)
}

func (e *Engine) nameLocked(name, id string) error {
	if owner, taken := e.names[name]; taken {
		return conflict("Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", name, owner)
	}
	e.names[name] = id
	return nil
}

// Rename gives a container another name.
func (e *Engine) Rename(name, to string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	to = strings.TrimPrefix(to, "/")
	if to == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if !containerName.MatchString(to) {
		return invalid("Error when allocating new name: Invalid container name (/%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", to)
	}
	old, err := e.rename(c, to)
	if err != nil {
		return err
	}
	e.renameEndpoints(c)
	e.emitContainer(c, events.ActionRename, map[string]string{"oldName": "/" + old})
	return nil
}

// rename is the part of Rename that others must not see halfway.
func (e *Engine) rename(c *ctr, to string) (old string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	old = c.rec.Name
	if c.removing {
		return "", conflict("container is marked for removal and cannot be renamed")
	}
	if old == to {
		return "", invalid("Renaming a container with the same name as its current name")
	}
	if err := e.nameLocked(to, c.id); err != nil {
		return "", conflict("Error when allocating new name: %s", err)
	}
	c.rec.Name = to
	if err := e.save(c); err != nil {
		c.rec.Name = old
		delete(e.names, to)
		return "", err
	}
	delete(e.names, old)
	return old, nil
}
