package main

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// architectures by each of their names.
var architectures = map[string]ocispec.Platform{
	"386": {Architecture: "386"}, "i386": {Architecture: "386"},
	"amd64": {Architecture: "amd64"}, "x86_64": {Architecture: "amd64"}, "x86-64": {Architecture: "amd64"},
	"arm64": {Architecture: "arm64"}, "aarch64": {Architecture: "arm64"},
	"arm": {Architecture: "arm"}, "armhf": {Architecture: "arm"}, "armel": {Architecture: "arm", Variant: "v6"},
	"loong64": {Architecture: "loong64"}, "mips64le": {Architecture: "mips64le"}, "ppc64le": {Architecture: "ppc64le"},
	"riscv64": {Architecture: "riscv64"}, "s390x": {Architecture: "s390x"},
}

var component = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// platformOf reads the value of --platform; "" is nil.
func platformOf(s string) (*ocispec.Platform, error) {
	p, err := parsePlatform(s)
	if err != nil {
		return nil, fmt.Errorf("invalid platform: %w", err)
	}
	return p, nil
}

// parsePlatform reads "OS/ARCHITECTURE[/VARIANT]", or one of the first two, for
// which the other is the machine's; "" is nil.
func parsePlatform(s string) (*ocispec.Platform, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) > 3 {
		return nil, fmt.Errorf("%q: cannot parse platform specifier: invalid argument", s)
	}
	for _, part := range parts {
		if !component.MatchString(part) {
			return nil, fmt.Errorf("%q is an invalid component of %q: platform specifier component must match %q: invalid argument", part, s, component)
		}
	}
	p := ocispec.Platform{Architecture: runtime.GOARCH}
	if known, ok := architectures[parts[len(parts)-1]]; ok && len(parts) == 1 {
		p = known
		p.OS = "linux"
		return &p, nil
	}
	switch p.OS = parts[0]; {
	case len(parts) > 1:
		p.Architecture = parts[1]
		if known, ok := architectures[parts[1]]; ok {
			p.Architecture, p.Variant = known.Architecture, known.Variant
		}
	case p.OS != "linux" && p.OS != "windows":
		return nil, fmt.Errorf("%q: unknown operating system or architecture: invalid argument", s)
	}
	if len(parts) > 2 {
		p.Variant = parts[2]
	}
	return &p, nil
}
