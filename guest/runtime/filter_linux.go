package runtime

import (
	"encoding/json"
	"fmt"
	goruntime "runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/guest/runtime/seccomp"
)

// filterCache keeps compiled seccomp filters by their source, JSON. The zero
// filterCache is empty.
type filterCache struct {
	mu      sync.Mutex
	filters map[string]filter
}

type filter struct {
	code  []byte
	flags uint
}

var nativeArch = map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}

// compile is the program of a filter (a specs.LinuxSeccomp as JSON; empty: none),
// from the cache if it was there before.
func (f *filterCache) compile(source []byte) ([]byte, uint, error) {
	if len(source) == 0 {
		return nil, 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.filters[string(source)]; ok {
		return known.code, known.flags, nil
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(source, &profile); err != nil {
		return nil, 0, fmt.Errorf("seccomp: %w", err)
	}
	native, ok := nativeArch[goruntime.GOARCH]
	if !ok {
		return nil, 0, fmt.Errorf("seccomp on %s: not supported", goruntime.GOARCH)
	}
	var made filter
	var err error
	if made.code, made.flags, err = seccomp.Compile(&profile, native); err != nil {
		return nil, 0, err
	}
	const most = 16 // filters; a new profile each run must not fill the memory
	if f.filters == nil || len(f.filters) >= most {
		f.filters = map[string]filter{}
	}
	f.filters[string(source)] = made
	return made.code, made.flags, nil
}
