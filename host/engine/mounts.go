package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// modeGroups are the parts of a mode, of which it may have one each. Most say nothing
// to us: there is no SELinux, nothing propagates between host and guest, and every
// share is consistent.
var modeGroups = [][]string{
	{"ro", "rw"}, {"z", "Z"}, {"cached", "delegated", "consistent", "default"}, {"nocopy"},
	{"private", "rprivate", "shared", "rshared", "slave", "rslave"},
}

// validMode says that all parts of a mode are known, and none is doubled or
// contradicts another.
func validMode(mode string) bool {
	var taken []int
	for _, o := range strings.Split(mode, ",") {
		group := slices.IndexFunc(modeGroups, func(g []string) bool { return slices.Contains(g, o) })
		if group < 0 || slices.Contains(taken, group) {
			return false
		}
		taken = append(taken, group)
	}
	return true
}

// dockerSockets are where clients look for the API: as a source they mean
// Sampan's own, whatever the host has there.
var dockerSockets = []string{"/var/run/docker.sock", "/run/docker.sock"}

// parseBind reads one of HostConfig.Binds, SOURCE:DESTINATION[:OPTIONS].
func parseBind(spec string) (mountRecord, error) {
	parts := strings.Split(spec, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return mountRecord{}, invalid("invalid volume specification: '%s'", spec)
	}
	m := mountRecord{MountPoint: container.MountPoint{RW: true}}
	if len(parts) == 3 {
		if m.Mode = parts[2]; !validMode(m.Mode) {
			return m, invalid("invalid mode: %s", m.Mode)
		}
		options := strings.Split(m.Mode, ",")
		m.RW, m.NoCopy = !slices.Contains(options, "ro"), slices.Contains(options, "nocopy")
	} else if validMode(parts[1]) { // an anonymous volume has none
		return m, invalid("invalid volume specification: '%s'", spec)
	}
	var err error
	if m.Destination, err = mountTarget(parts[1]); err != nil {
		kind := mount.TypeVolume
		if strings.HasPrefix(parts[0], "/") {
			kind = mount.TypeBind
		}
		return m, invalid("invalid volume specification: '%s': invalid mount config for type %q: %s", spec, kind, err)
	}
	if strings.HasPrefix(parts[0], "/") {
		m.Type, m.Source, m.Propagation = mount.TypeBind, path.Clean(parts[0]), mount.PropagationRPrivate
		if m.NoCopy {
			return m, invalid("invalid volume specification: '%s': nocopy is only for volumes", spec)
		}
		return m, nil
	}
	if !volumeName.MatchString(parts[0]) {
		return m, invalid("create %[1]s: %[1]q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", parts[0])
	}
	m.Type, m.Name, m.Driver = mount.TypeVolume, parts[0], "local"
	if m.Mode == "" {
		m.Mode = "z" // what Docker shows
	}
	return m, nil
}

func mountTarget(p string) (string, error) {
	if !strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("invalid mount path: '%s' mount path must be absolute", p)
	}
	p = path.Clean(p)
	if p == "/" {
		return "", errors.New("invalid specification: destination can't be '/'")
	}
	return p, nil
}

// parseMount reads one of HostConfig.Mounts.
func parseMount(m mount.Mount) (mountRecord, error) {
	out := mountRecord{Spec: true, MountPoint: container.MountPoint{Type: m.Type, RW: !m.ReadOnly}}
	bad := func(format string, args ...any) (mountRecord, error) {
		return out, invalid("invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	target, err := mountTarget(m.Target)
	if err != nil {
		return bad("%s", err)
	}
	out.Destination = target
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if !strings.HasPrefix(m.Source, "/") {
			return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		out.Source, out.Propagation = path.Clean(m.Source), mount.PropagationRPrivate
		if o := m.BindOptions; o != nil {
			out.Create = o.CreateMountpoint
			if err := refuse([]named{
				{"BindOptions.NonRecursive", o.NonRecursive},
				{"BindOptions.ReadOnlyNonRecursive", o.ReadOnlyNonRecursive},
			}); err != nil {
				return out, err
			}
		}
		if slices.Contains(dockerSockets, out.Source) {
			return out, nil
		}
		if _, err := os.Stat(out.Source); errors.Is(err, fs.ErrNotExist) && !out.Create {
			return bad("bind source path does not exist: %s", m.Source)
		}
		return out, nil
	case mount.TypeVolume:
		return volumeMount(m, out)
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		out.Options, err = tmpfsMountOptions(m)
		return out, err
	}
	switch m.Type {
	case mount.TypeImage, mount.TypeNamedPipe, mount.TypeCluster:
		return out, unsupported("a mount of type %q", m.Type)
	}
	return bad("mount type unknown")
}

func volumeMount(m mount.Mount, out mountRecord) (mountRecord, error) {
	if m.Source != "" && !volumeName.MatchString(m.Source) {
		return out, invalid("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", m.Source)
	}
	if m.Source == "" && m.ReadOnly {
		return out, invalid("invalid mount config for type %q: must not set ReadOnly mode when using anonymous volumes", m.Type)
	}
	out.Name, out.Driver, out.Mode = m.Source, "local", "z"
	if o := m.VolumeOptions; o != nil {
		out.NoCopy, out.Subpath = o.NoCopy, o.Subpath
		if o.Subpath != "" && !filepath.IsLocal(o.Subpath) {
			return out, invalid("invalid mount config for type %q: subpath must be a relative path within the volume", m.Type)
		}
		driver := o.DriverConfig != nil && (o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" || len(o.DriverConfig.Options) > 0)
		return out, refuse([]named{
			{"VolumeOptions.DriverConfig", driver},
		})
	}
	return out, nil
}

func tmpfsMountOptions(m mount.Mount) ([]string, error) {
	opts := []string{"noexec", "nosuid", "nodev"}
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	o := m.TmpfsOptions
	if o == nil {
		return opts, nil
	}
	if o.SizeBytes < 0 {
		return nil, invalid("invalid mount config for type \"tmpfs\": size of %d bytes", o.SizeBytes)
	}
	if o.SizeBytes > 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
	}
	for _, kv := range o.Options {
		opts = append(opts, strings.Join(kv, "="))
	}
	return opts, nil
}

// tmpfsOptions are those of --tmpfs PATH:OPTIONS.
func tmpfsOptions(s string) []string {
	opts := []string{"noexec", "nosuid", "nodev"}
	for _, o := range strings.Split(s, ",") {
		switch o {
		case "":
		case "exec", "suid", "dev":
			opts = slices.DeleteFunc(opts, func(have string) bool { return have == "no"+o })
		default:
			if !slices.Contains(opts, o) {
				opts = append(opts, o)
			}
		}
	}
	return opts
}

// borrowMounts are the mounts of other containers (--volumes-from NAME[:MODE]).
func (e *Engine) borrowMounts(from []string) ([]mountRecord, error) {
	var out []mountRecord
	for _, spec := range from {
		name, mode, _ := strings.Cut(spec, ":")
		if name == "" {
			return nil, invalid("invalid volumes-from specification: '%s'", spec)
		}
		if mode != "" && (mode == "nocopy" || !validMode(mode)) {
			return nil, invalid("invalid mode: %s", mode)
		}
		c, err := e.find(name)
		if err != nil {
			return nil, invalid("%s", err) // what is not found would be taken for the image
		}
		for _, m := range c.view().rec.Mounts {
			if m.Hidden {
				continue
			}
			m.RW, m.Anonymous, m.NoCopy = m.RW && !slices.Contains(strings.Split(mode, ","), "ro"), false, true
			out = append(out, m)
		}
	}
	return out, nil
}

// planMounts lists a container's mounts in Docker's order of precedence:
// Binds and Mounts, then Tmpfs, then what it borrows from others (of these the
// last one wins), then the image's volumes where nothing else is.
func planMounts(cfg *container.Config, h *container.HostConfig, borrowed []mountRecord) ([]mountRecord, error) {
	var out []mountRecord
	taken := map[string]bool{}
	add := func(m mountRecord) error {
		if taken[m.Destination] {
			return invalid("Duplicate mount point: %s", m.Destination)
		}
		taken[m.Destination] = true
		out = append(out, m)
		return nil
	}
	for _, spec := range h.Binds {
		m, err := parseBind(spec)
		if err == nil {
			err = add(m)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, spec := range h.Mounts {
		m, err := parseMount(spec)
		if err == nil {
			err = add(m)
		}
		if err != nil {
			return nil, err
		}
	}
	for dst, opts := range h.Tmpfs {
		target, err := mountTarget(dst)
		if err != nil {
			return nil, invalid("%s", err)
		}
		m := mountRecord{Hidden: true, Options: tmpfsOptions(opts), MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: target, RW: true}}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, m := range slices.Backward(borrowed) {
		if !taken[m.Destination] {
			if err := add(m); err != nil {
				return nil, err
			}
		}
	}
	for dst := range cfg.Volumes {
		target, err := mountTarget(dst)
		if err != nil {
			return nil, invalid("%s", err)
		}
		if taken[target] {
			continue
		}
		if err := add(mountRecord{MountPoint: container.MountPoint{Type: mount.TypeVolume, Destination: target, Driver: "local", RW: true}}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b mountRecord) int { return strings.Compare(a.Destination, b.Destination) })
	return out, nil
}

// ociMounts turns a container's mounts into those of its spec, exporting what
// lies on the host. The caller closes the exports, also after an error.
func (e *Engine) ociMounts(ms []mountRecord) (out []specs.Mount, exports []Export, err error) {
	for _, m := range ms {
		access := "rw"
		if !m.RW {
			access = "ro"
		}
		switch m.Type {
		case mount.TypeBind:
			if path, mode := e.socketSource(m.Source); path != "" {
				x, err := e.cfg.Socket(path)
				if err != nil {
					return nil, exports, fmt.Errorf("mount %s: %w", m.Source, err)
				}
				exports = append(exports, x)
				out = append(out, specs.Mount{Destination: m.Destination, Type: "socket", Source: x.Name(), Options: []string{access, mode}})
				continue
			}
			if err := ensureSource(m); err != nil {
				return nil, exports, err
			}
			x, err := e.cfg.Export(m.Source, !m.RW)
			if err != nil {
				return nil, exports, fmt.Errorf("mount %s: %w", m.Source, err)
			}
			exports = append(exports, x)
			out = append(out, specs.Mount{Destination: m.Destination, Type: "host", Source: x.Name(), Options: []string{access}})
		case mount.TypeVolume:
			opts := []string{access}
			if m.NoCopy {
				opts = append(opts, "nocopy")
			}
			if m.Subpath != "" {
				opts = append(opts, "subpath="+m.Subpath)
			}
			out = append(out, specs.Mount{Destination: m.Destination, Type: "volume", Source: m.VolumeID, Options: opts})
		case mount.TypeTmpfs:
			out = append(out, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
		}
	}
	return out, exports, nil
}

// socketSource tells which UNIX socket of the host a source means, if it means
// one, and the mode that it has in the container. Who may connect to the API has
// power over all containers: in a container that is root and its group, as with
// Docker. What else the user can reach is any container user's, as shared files
// are.
func (e *Engine) socketSource(src string) (path, mode string) {
	api := filepath.Join(e.cfg.Home, "docker.sock")
	if slices.Contains(dockerSockets, src) {
		return api, "mode=660"
	}
	fi, err := os.Stat(src)
	if err != nil || fi.Mode().Type() != fs.ModeSocket {
		return "", ""
	}
	if own, err := os.Stat(api); err == nil && os.SameFile(fi, own) {
		return api, "mode=660"
	}
	return src, "mode=666"
}

// ensureSource makes a missing source of -v, as the user.
func ensureSource(m mountRecord) error {
	_, err := os.Stat(m.Source)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil // Export tells what is wrong
	}
	if m.Spec && !m.Create {
		return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
	}
	if err := os.MkdirAll(filepath.FromSlash(m.Source), 0o755); err != nil {
		return fmt.Errorf("error while creating mount source path '%s': %w", m.Source, err)
	}
	return nil
}
