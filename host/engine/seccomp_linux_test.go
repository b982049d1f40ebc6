package engine

import (
	"encoding/json"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The profile that we carry is the module's.
func TestDefaultProfile(t *testing.T) {
	var got seccomp.Seccomp
	if err := json.Unmarshal(defaultProfile, &got); err != nil {
		t.Fatal(err)
	}
	// Through JSON, so that absent and empty are the same.
	want, err := json.Marshal(seccomp.DefaultProfile())
	if err != nil {
		t.Fatal(err)
	}
	have, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(have, want) {
		t.Errorf("seccomp.json is not the default of moby/profiles/seccomp\nhave %.300s\nwant %.300s", have, want)
	}
}

// For this machine's architecture we resolve it to what the module does, for
// every capability that a condition of the profile names.
func TestResolveSeccomp(t *testing.T) {
	cases := [][]string{{}, defaultCaps, allCaps}
	for _, c := range allCaps {
		cases = append(cases, []string{c}, append(slices.Clone(defaultCaps), c))
	}
	for _, caps := range cases {
		spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
		want, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := resolveSeccomp(defaultProfile, runtime.GOARCH, caps)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("capabilities %q: %d rules, %q; want %d, %q", caps, len(got.Syscalls), got.Architectures, len(want.Syscalls), want.Architectures)
		}
	}
}

// For an architecture that isn't this machine's there are its own calls.
func TestResolveSeccompArch(t *testing.T) {
	for arch, c := range map[string]struct {
		first specs.Arch
		has   string
		lacks string
	}{
		"amd64": {specs.ArchX86_64, "arch_prctl", "arm_fadvise64_64"},
		"arm64": {specs.ArchAARCH64, "arm_fadvise64_64", "arch_prctl"},
	} {
		got, err := resolveSeccomp(defaultProfile, arch, defaultCaps)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range got.Syscalls {
			names = append(names, s.Names...)
		}
		if got.Architectures[0] != c.first || !slices.Contains(names, c.has) || slices.Contains(names, c.lacks) {
			t.Errorf("%s: architectures %q, %s %v, %s %v", arch, got.Architectures, c.has, slices.Contains(names, c.has), c.lacks, slices.Contains(names, c.lacks))
		}
	}
}
