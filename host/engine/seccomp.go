package engine

import (
	_ "embed" // the default profile
	"encoding/json"
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultProfile is default.json of github.com/moby/profiles/seccomp v0.2.4,
// which is Docker's default. The module resolves it for the machine it runs on
// and builds on Linux only; ours is resolved for the guest, on any host. A test
// compares the two.
//
//go:embed seccomp.json
var defaultProfile []byte

// guestKernel is the oldest kernel that a guest runs.
var guestKernel = seccomp.KernelVersion{Kernel: 6, Major: 12}

// nativeArch is libseccomp's name of the guest's architecture by GOARCH.
var nativeArch = map[string]specs.Arch{
	"amd64": specs.ArchX86_64,
	"arm64": specs.ArchAARCH64,
}

// resolveSeccomp turns a profile in Docker's JSON into rules for a guest of the
// given architecture and a process with the given bounding capabilities.
func resolveSeccomp(profile []byte, goarch string, caps []string) (*specs.LinuxSeccomp, error) {
	var p seccomp.Seccomp
	if err := json.Unmarshal(profile, &p); err != nil {
		return nil, fmt.Errorf("decode seccomp profile: %w", err)
	}
	if p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil // an empty profile means unconfined
	}
	if len(p.Architectures) != 0 && len(p.ArchMap) != 0 {
		return nil, fmt.Errorf("seccomp profile: both 'architectures' and 'archMap' are given")
	}
	out := p.LinuxSeccomp
	for _, a := range p.ArchMap {
		if a.Arch == nativeArch[goarch] {
			out.Architectures = append(out.Architectures, a.Arch)
			out.Architectures = append(out.Architectures, a.SubArches...)
			break
		}
	}
	for _, call := range p.Syscalls {
		if call.Name != "" {
			if len(call.Names) != 0 {
				return nil, fmt.Errorf("seccomp profile: both 'name' and 'names' are given for %s", call.Name)
			}
			call.Names = []string{call.Name}
		}
		if excluded(call.Excludes, goarch, caps) || !included(call.Includes, goarch, caps) {
			continue
		}
		out.Syscalls = append(out.Syscalls, call.LinuxSyscall)
	}
	return &out, nil
}

func excluded(f *seccomp.Filter, goarch string, caps []string) bool {
	if f == nil {
		return false
	}
	for _, c := range f.Caps {
		if slices.Contains(caps, c) {
			return true
		}
	}
	return slices.Contains(f.Arches, goarch) || f.MinKernel != nil && guestIsAtLeast(*f.MinKernel)
}

func included(f *seccomp.Filter, goarch string, caps []string) bool {
	if f == nil {
		return true
	}
	for _, c := range f.Caps {
		if !slices.Contains(caps, c) {
			return false
		}
	}
	if len(f.Arches) > 0 && !slices.Contains(f.Arches, goarch) {
		return false
	}
	return f.MinKernel == nil || guestIsAtLeast(*f.MinKernel)
}

func guestIsAtLeast(v seccomp.KernelVersion) bool {
	return guestKernel.Kernel > v.Kernel || guestKernel.Kernel == v.Kernel && guestKernel.Major >= v.Major
}
