package agent

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"

	"sampan/guest/boot"
)

// Types of mounts that the agent resolves (agent.proto, StartRequest.spec).
const (
	mountHost   = "host"
	mountVolume = "volume"
	mountSocket = "socket"
	mountShm    = "shm"
)

// resolveMounts turns the mounts that only the agent knows into binds, and
// adds the container's files. Volumes are filled from the root on the way.
func (s *Service) resolveMounts(r *rootfs, spec *specs.Spec, files map[string][]byte) error {
	for i, m := range spec.Mounts {
		var src string
		var err error
		switch m.Type {
		case mountHost:
			src, err = r.bind(boot.HostDir, m.Source)
		case mountVolume:
			src, err = s.bindVolume(r, m)
		case mountSocket:
			src, err = r.relay(m, s.cfg.DialHost, s.cfg.Log)
		case mountShm:
			src, err = s.shm(r, &m)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("mount %s %s on %s: %w", m.Type, m.Source, m.Destination, err)
		}
		spec.Mounts[i] = bindMount(src, m.Destination, m.Options)
	}
	at, err := r.writeFiles(files)
	if err != nil {
		return err
	}
	var options []string
	if spec.Root != nil && spec.Root.Readonly {
		options = []string{"ro"}
	}
	for _, path := range slices.Sorted(maps.Keys(at)) {
		// What the user mounts there wins.
		if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return filepath.Clean(m.Destination) == path }) {
			spec.Mounts = append(spec.Mounts, bindMount(at[path], path, options))
		}
	}
	return nil
}

// shm returns where the shared memory is that m names: another container's, or
// one that others can have, too. The options that are the file system's are
// taken from m.
func (s *Service) shm(r *rootfs, m *specs.Mount) (string, error) {
	var own, mount []string
	for _, o := range m.Options {
		if strings.Contains(o, "=") {
			own = append(own, o)
		} else {
			mount = append(mount, o)
		}
	}
	m.Options = mount
	id, others := strings.CutPrefix(m.Source, containerNamespace)
	if !others {
		return r.newShm(own)
	}
	c, err := s.running(id)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root == nil || c.root.shm == "" {
		return "", errorf(codes.FailedPrecondition, "container %s has no shared memory to share", id)
	}
	return r.joinShm(c.root.shm)
}

// bindVolume returns where the volume that m names, or the part of it, is.
func (s *Service) bindVolume(r *rootfs, m specs.Mount) (string, error) {
	data, part, err := s.volume(r, m)
	if err != nil || part == "" {
		return data, err
	}
	tree, isDir, err := cloneVolumePart(data, part)
	if err != nil {
		return "", err
	}
	return r.attach(tree, isDir)
}

// bindMount is a mount of src, with those options that the kernel knows.
func bindMount(src, dst string, options []string) specs.Mount {
	opts := []string{"rbind"}
	for _, o := range options {
		if o != "nocopy" && o != "rbind" && o != "bind" && !strings.HasPrefix(o, socketMode) && !strings.HasPrefix(o, subpath) {
			opts = append(opts, o)
		}
	}
	return specs.Mount{Type: "bind", Source: src, Destination: dst, Options: opts}
}
