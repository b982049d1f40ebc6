package runtime

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	goruntime "runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/guest/runtime/seccomp"
)

// filterCache keeps compiled seccomp filters by the hash of their source. The
// zero filterCache is empty.
type filterCache struct {
	mu      sync.Mutex
	filters map[[sha256.Size]byte]filter
}

type filter struct {
	code  []byte
	flags uint
}

var nativeArch = map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}

// compile is the program of a filter, from the cache if it was there before.
func (f *filterCache) compile(s *specs.LinuxSeccomp) ([]byte, uint, error) {
	if s == nil {
		return nil, 0, nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, 0, err
	}
	hash := sha256.Sum256(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.filters[hash]; ok {
		return known.code, known.flags, nil
	}
	native, ok := nativeArch[goruntime.GOARCH]
	if !ok {
		return nil, 0, fmt.Errorf("seccomp on %s: not supported", goruntime.GOARCH)
	}
	var made filter
	if made.code, made.flags, err = seccomp.Compile(s, native); err != nil {
		return nil, 0, err
	}
	const most = 64 // filters; a new profile each run must not fill the memory
	if f.filters == nil || len(f.filters) >= most {
		f.filters = map[[sha256.Size]byte]filter{}
	}
	f.filters[hash] = made
	return made.code, made.flags, nil
}
