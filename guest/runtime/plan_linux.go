package runtime

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/guest/runtime/stage2"
)

// rootPlan completes the plan of the container's root as the spec asks for it.
func rootPlan(root *stage2.Root, spec *specs.Spec) error {
	linux := spec.Linux
	root.ReadOnly = spec.Root != nil && spec.Root.Readonly
	root.Hostname, root.Domain = spec.Hostname, spec.Domainname
	root.Masked, root.ReadPaths = linux.MaskedPaths, linux.ReadonlyPaths
	root.DevLinks = true
	if p := linux.RootfsPropagation; p != "" {
		flag, ok := propagations[p]
		if !ok {
			return fmt.Errorf("root propagation %q: unknown", p)
		}
		root.Propagation = flag.flag
	}
	for _, m := range spec.Mounts {
		mount, err := mountPlan(m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if mount.Type == "" && path.Clean(mount.Dest) == "/dev" {
			root.DevLinks = false // somebody else's /dev: leave it alone
		}
		root.Mounts = append(root.Mounts, mount)
	}
	for _, d := range linux.Devices {
		device, err := devicePlan(d)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
		root.Devices = append(root.Devices, device)
	}
	for _, key := range slices.Sorted(maps.Keys(linux.Sysctl)) {
		// Both separators are allowed, as in sysctl(8): the first decides.
		file := key
		if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
			file = strings.Map(func(c rune) rune {
				switch c {
				case '.':
					return '/'
				case '/':
					return '.'
				}
				return c
			}, key)
		}
		root.Sysctls = append(root.Sysctls, stage2.Sysctl{Path: file, Value: linux.Sysctl[key]})
	}
	return nil
}

// device types of the spec, to the mode's bits.
var deviceTypes = map[string]uint32{"c": 0x2000, "u": 0x2000, "b": 0x6000, "p": 0x1000}

func devicePlan(d specs.LinuxDevice) (stage2.Device, error) {
	kind, ok := deviceTypes[d.Type]
	if !ok {
		return stage2.Device{}, fmt.Errorf("type %q: unknown", d.Type)
	}
	device := stage2.Device{Path: d.Path, Mode: kind | 0o666, Major: uint32(d.Major), Minor: uint32(d.Minor)}
	if d.FileMode != nil {
		device.Mode = kind | uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		device.UID = *d.UID
	}
	if d.GID != nil {
		device.GID = *d.GID
	}
	return device, nil
}

// processPlan is a process as the spec asks for it, in the container's user
// database.
func processPlan(p *specs.Process, lastCap int, files userFiles) (stage2.Process, error) {
	plan := stage2.Process{
		Args:       p.Args,
		Env:        p.Env,
		Cwd:        p.Cwd,
		Umask:      0o022,
		LastCap:    lastCap,
		NoNewPrivs: p.NoNewPrivileges,
		Terminal:   p.Terminal,
	}
	if plan.Cwd == "" {
		plan.Cwd = "/"
	}
	if !path.IsAbs(plan.Cwd) {
		return plan, fmt.Errorf("working directory %q is not an absolute path", plan.Cwd)
	}
	if p.User.Umask != nil {
		plan.Umask = *p.User.Umask
	}
	plan.OOMScoreAdj = p.OOMScoreAdj
	if err := planUser(&plan, p.User, files); err != nil {
		return plan, err
	}
	var err error
	if plan.Rlimits, err = rlimitsPlan(p.Rlimits); err != nil {
		return plan, err
	}
	return plan, planCapabilities(&plan, p.Capabilities)
}

// rlimits by name (getrlimit(2); the numbers are those of most architectures).
var rlimits = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3,
	"RLIMIT_CORE": 4, "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7,
	"RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11,
	"RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// rlimitsPlan is the spec's limits, and those of Docker's service where the spec
// leaves to us what the agent happens to have: Go raises its own soft limit of
// files.
func rlimitsPlan(list []specs.POSIXRlimit) ([]stage2.Rlimit, error) {
	const files, unlimited = 1 << 20, ^uint64(0)
	limits := map[int]stage2.Rlimit{
		rlimits["RLIMIT_NOFILE"]: {Soft: files, Hard: files},
		rlimits["RLIMIT_NPROC"]:  {Soft: unlimited, Hard: unlimited},
		rlimits["RLIMIT_CORE"]:   {Soft: unlimited, Hard: unlimited},
	}
	for _, l := range list {
		number, ok := rlimits[l.Type]
		if !ok {
			return nil, fmt.Errorf("limit %q: unknown", l.Type)
		}
		limits[number] = stage2.Rlimit{Soft: l.Soft, Hard: l.Hard}
	}
	var plan []stage2.Rlimit
	for _, number := range slices.Sorted(maps.Keys(limits)) {
		l := limits[number]
		l.Resource = number
		plan = append(plan, l)
	}
	return plan, nil
}
