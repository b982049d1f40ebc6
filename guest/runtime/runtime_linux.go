package runtime

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"sampan/guest/runtime/stage2"
)

// killTimeout bounds the clean-up after a failed Create.
const killTimeout = 10 * time.Second

// killContext bounds a clean-up that nothing else bounds.
func killContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), killTimeout)
}

// Options of a Runtime.
type Options struct {
	// Stage2 is the executable of stage 2: one that calls Main first, as
	// sampan-stage2 and these tests do. Required. For Config.Init it has to be
	// linked with -E sampan/guest/runtime/stage2.entry.
	Stage2 string
	// Children lists the processes that are started. Required.
	Children *Children
	// Cgroup is the directory in which each container gets a cgroup, which
	// Container.Cgroup names. It delegates the controllers that the specs'
	// limits need. Required.
	Cgroup string
	// Mounts are mount points with all below them that a process in reserve
	// must not hold on to, since they or what is there may have to be
	// unmounted: those of containers' roots and their sources. Optional.
	Mounts []string
}

// Runtime makes containers.
type Runtime struct {
	opts    Options
	lastCap int
	filters filterCache
	devices deviceCache
	cgroups atomic.Uint64 // made so far
	creates reserve       // in new namespaces
	execs   reserve
}

// Main becomes stage 2, and never returns, in a process that a Runtime has
// started as such. It must be the first call of main in the executable that
// Options.Stage2 names.
func Main() { stage2.Main() }

// New returns a runtime.
func New(opts Options) (*Runtime, error) {
	if opts.Children == nil {
		return nil, errors.New("runtime without Children")
	}
	if opts.Cgroup == "" {
		return nil, errors.New("runtime without Cgroup")
	}
	if opts.Stage2 == "" {
		return nil, errors.New("runtime without Stage2")
	}
	lastCap, err := readLastCap()
	if err != nil {
		return nil, err
	}
	return &Runtime{opts: opts, lastCap: lastCap}, nil
}
