package agent

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/guest/boot"
)

// Types of mounts that the agent resolves (agent.proto, StartRequest.spec).
const (
	mountHost   = "host"
	mountVolume = "volume"
	mountSocket = "socket"
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
