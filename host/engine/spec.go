package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// specInput is everything that a container's OCI spec is made from.
type specInput struct {
	ID     string
	Arch   string // the guest's, as GOARCH
	Config *container.Config
	Host   *container.HostConfig
	// Args is the entrypoint followed by the command.
	Args []string
	// SharedNetwork, SharedIPC and SharedPID are the IDs of the containers whose
	// namespaces this one is in, where its modes say so.
	SharedNetwork, SharedIPC, SharedPID string
	// Mounts are the container's own: binds, volumes, tmpfs.
	Mounts []specs.Mount
}

// makeSpec is a pure function from a container's configuration to its OCI spec,
// with the additions that proto.StartRequest describes.
func makeSpec(in specInput) (*specs.Spec, error) {
	caps, err := capabilities(in.Host)
	if err != nil {
		return nil, err
	}
	sec, err := parseSecurity(in.Host.SecurityOpt)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Hostname:    in.Config.Hostname,
		Domainname:  in.Config.Domainname,
		Root:        &specs.Root{Path: "rootfs", Readonly: in.Host.ReadonlyRootfs},
		Annotations: in.Host.Annotations,
		Process:     process(in, caps, sec),
		Linux: &specs.Linux{
			CgroupsPath:   "/containers/" + in.ID,
			Namespaces:    namespaces(in),
			Sysctl:        sysctls(in.Host),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if in.Host.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", ""
	}
	if in.Host.MaskedPaths != nil {
		s.Linux.MaskedPaths = in.Host.MaskedPaths
	}
	if in.Host.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = in.Host.ReadonlyPaths
	}
	if s.Linux.Resources, err = resources(in.Host); err != nil {
		return nil, err
	}
	s.Mounts = mergeMounts(ipcMounts(defaultMounts(in.Host.ShmSize), in), in.Mounts)
	if in.Host.Privileged {
		privilege(s)
	}
	switch sec.profile {
	case "unconfined":
	case "", "builtin":
		if in.Host.Privileged { // but a profile of its own counts
			return s, nil
		}
		s.Linux.Seccomp, err = resolveSeccomp(defaultProfile, in.Arch, caps)
	default:
		s.Linux.Seccomp, err = resolveSeccomp([]byte(sec.profile), in.Arch, caps)
		if err != nil {
			err = errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
	}
	return s, err
}

func process(in specInput, caps []string, sec security) *specs.Process {
	p := &specs.Process{
		Terminal: in.Config.Tty,
		Args:     in.Args,
		Cwd:      in.Config.WorkingDir,
		Env:      environment(in.Config),
		User:     withGroups(specs.User{Username: in.Config.User, Umask: in.Host.Umask}, in.Host.GroupAdd),
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Effective: caps, Permitted: caps,
		},
		NoNewPrivileges: sec.noNewPrivileges,
		OOMScoreAdj:     &in.Host.OomScoreAdj,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if size := in.Host.ConsoleSize; in.Config.Tty && size[0] > 0 && size[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: size[0], Width: size[1]}
	}
	for _, u := range in.Host.Ulimits {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard),
		})
	}
	return p
}

// privilege takes the fences away, as docker run --privileged does.
func privilege(s *specs.Spec) {
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	for i, m := range s.Mounts {
		if m.Type == "sysfs" || m.Type == "cgroup" {
			opts := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
			s.Mounts[i].Options = append(opts, "rw")
		}
	}
}

// environment is Docker's order: its own variables, then the container's,
// which replace them.
func environment(cfg *container.Config) []string {
	env := []string{defaultPath, "HOSTNAME=" + cfg.Hostname}
	if cfg.Domainname != "" {
		env[1] += "." + cfg.Domainname
	}
	if cfg.Tty {
		env = append(env, "TERM=xterm")
	}
	return mergeEnv(env, cfg.Env)
}

// mergeEnv replaces or appends; an entry without "=" removes the variable.
func mergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, kv := range over {
		name, _, set := strings.Cut(kv, "=")
		i := slices.IndexFunc(out, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		switch {
		case !set && i >= 0:
			out = slices.Delete(out, i, i+1)
		case !set:
		case i >= 0:
			out[i] = kv
		default:
			out = append(out, kv)
		}
	}
	return out
}

// ofContainer begins what is another container's (proto.StartRequest).
const ofContainer = "container:"

func namespaces(in specInput) []specs.LinuxNamespace {
	h := in.Host
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	switch {
	case h.IpcMode.IsContainer():
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: ofContainer + in.SharedIPC})
	case !h.IpcMode.IsHost():
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace})
	}
	switch {
	case h.NetworkMode.IsContainer():
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: ofContainer + in.SharedNetwork})
	case !h.NetworkMode.IsHost():
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	switch {
	case h.PidMode.IsContainer():
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: ofContainer + in.SharedPID})
	case !h.PidMode.IsHost():
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if !h.UTSMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	if !h.CgroupnsMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// sysctls lets unprivileged processes bind low ports and ping, as Docker does
// where the container has a network of its own.
func sysctls(h *container.HostConfig) map[string]string {
	out := map[string]string{}
	if !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(out, h.Sysctls)
	return out
}

// capabilities applies --cap-add and --cap-drop to Docker's default.
func capabilities(h *container.HostConfig) ([]string, error) {
	add, err := normalCaps("CapAdd", h.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, err := normalCaps("CapDrop", h.CapDrop)
	if err != nil {
		return nil, err
	}
	base := defaultCaps
	switch {
	case h.Privileged:
		return allCaps, nil
	case slices.Contains(add, "ALL"):
		base = allCaps
	case slices.Contains(drop, "ALL"):
		base = nil
	}
	caps := []string{}
	for _, c := range base {
		if !slices.Contains(drop, c) {
			caps = append(caps, c)
		}
	}
	for _, c := range add {
		if c != "ALL" && !slices.Contains(caps, c) && !(slices.Contains(drop, c)) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

func normalCaps(field string, names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		c := strings.ToUpper(n)
		if c != "ALL" && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c == "CAP_ALL" {
			c = "ALL"
		}
		if c != "ALL" && !slices.Contains(allCaps, c) {
			return nil, invalid("invalid %s: unknown capability: %q", field, c)
		}
		out = append(out, c)
	}
	return out, nil
}

// security is what --security-opt asks for.
type security struct {
	noNewPrivileges bool
	profile         string // "", "builtin", "unconfined" or a profile in JSON
}

func parseSecurity(opts []string) (security, error) {
	var s security
	for _, o := range opts {
		key, val, ok := strings.Cut(o, "=")
		if !ok {
			key, val, ok = strings.Cut(o, ":") // the old form
		}
		switch {
		case key == "no-new-privileges" && !ok:
			s.noNewPrivileges = true
		case key == "no-new-privileges":
			b, err := strconv.ParseBool(val)
			if err != nil {
				return s, invalid("invalid --security-opt 2: %q", o)
			}
			s.noNewPrivileges = b
		case key == "seccomp" && ok:
			if val != "unconfined" && val != "builtin" && !json.Valid([]byte(val)) {
				return s, invalid("decode seccomp profile: not JSON")
			}
			s.profile = val
		case key == "label" && val == "disable", key == "apparmor" && val == "unconfined":
			// The guest has neither SELinux nor AppArmor.
		case key == "label", key == "apparmor", key == "systempaths", key == "writable-cgroups":
			return s, unsupported("HostConfig.SecurityOpt %q", o)
		default:
			return s, invalid("invalid --security-opt 2: %q", o)
		}
	}
	return s, nil
}

// withGroups adds groups to a user: numbers, and names for the agent to look
// up (proto.StartRequest).
func withGroups(u specs.User, groups []string) specs.User {
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			u.AdditionalGids = append(u.AdditionalGids, uint32(n))
		} else {
			u.Username += "\n" + g
		}
	}
	return u
}

func resources(h *container.HostConfig) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{Devices: defaultDeviceRules()}
	for _, rule := range h.DeviceCgroupRules {
		d, err := parseDeviceRule(rule)
		if err != nil {
			return nil, err
		}
		r.Devices = append(r.Devices, d)
	}
	r.CPU = cpuResources(h)
	if h.Memory > 0 || h.MemoryReservation > 0 || h.MemorySwap != 0 {
		m := &specs.LinuxMemory{}
		if h.Memory > 0 {
			m.Limit = &h.Memory
		}
		if h.MemoryReservation > 0 {
			m.Reservation = &h.MemoryReservation
		}
		switch {
		case h.MemorySwap != 0:
			m.Swap = &h.MemorySwap
		case h.Memory > 0: // as much swap as memory
			swap := 2 * h.Memory
			m.Swap = &swap
		}
		r.Memory = m
	}
	if h.PidsLimit != nil && *h.PidsLimit != 0 {
		limit := max(*h.PidsLimit, -1)
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return r, nil
}

func cpuResources(h *container.HostConfig) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: h.CpusetCpus, Mems: h.CpusetMems}
	if h.CPUShares > 0 {
		n := uint64(h.CPUShares)
		c.Shares = &n
	}
	if h.CPUPeriod > 0 {
		n := uint64(h.CPUPeriod)
		c.Period = &n
	}
	if h.CPUQuota != 0 {
		c.Quota = &h.CPUQuota
	}
	if h.NanoCPUs > 0 {
		period := uint64(100_000) // microseconds
		quota := h.NanoCPUs * int64(period) / 1e9
		c.Period, c.Quota = &period, &quota
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

// parseDeviceRule reads "c 1:3 rwm".
func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	bad := func() (specs.LinuxDeviceCgroup, error) {
		return specs.LinuxDeviceCgroup{}, invalid("invalid device cgroup rule format: '%s'", rule)
	}
	f := strings.Fields(rule)
	if len(f) != 3 || !strings.Contains("abc", f[0]) || len(f[0]) != 1 || f[2] == "" || strings.Trim(f[2], "rwm") != "" {
		return bad()
	}
	d := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	maj, min, ok := strings.Cut(f[1], ":")
	if !ok {
		return bad()
	}
	for _, part := range []struct {
		s   string
		dst **int64
	}{{maj, &d.Major}, {min, &d.Minor}} {
		n := int64(-1)
		if part.s != "*" {
			v, err := strconv.ParseUint(part.s, 10, 32)
			if err != nil {
				return bad()
			}
			n = int64(v)
		}
		*part.dst = &n
	}
	return d, nil
}

// ipcMounts are the default mounts with those that go with an IPC namespace.
func ipcMounts(defaults []specs.Mount, in specInput) []specs.Mount {
	out, mode := defaults[:0], in.Host.IpcMode
	for _, m := range defaults {
		switch {
		case mode.IsNone() && m.Destination == shmDir:
			continue
		case mode.IsShareable() && m.Destination == shmDir:
			m.Type = "shm"
		case mode.IsContainer() && m.Destination == shmDir:
			m.Type, m.Source, m.Options = "shm", ofContainer+in.SharedIPC, []string{"nosuid", "noexec", "nodev"}
		case mode.IsHost() && (m.Destination == shmDir || m.Destination == "/dev/mqueue"):
			m = specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Destination, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
		}
		out = append(out, m)
	}
	return out
}

// mergeMounts drops the defaults that the container's own mounts replace; those
// come sorted, so that a parent is mounted before what lies in it.
func mergeMounts(defaults, own []specs.Mount) []specs.Mount {
	own = slices.Clone(own)
	sort.SliceStable(own, func(i, j int) bool {
		return strings.Count(own[i].Destination, "/") < strings.Count(own[j].Destination, "/")
	})
	out := slices.DeleteFunc(defaults, func(d specs.Mount) bool {
		return slices.ContainsFunc(own, func(o specs.Mount) bool { return o.Destination == d.Destination })
	})
	return append(out, own...)
}

func sizeOption(bytes int64) string {
	if bytes <= 0 {
		bytes = defaultShmSize
	}
	return fmt.Sprintf("size=%d", bytes)
}
