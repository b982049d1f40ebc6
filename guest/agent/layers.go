package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// idleLayers is how many layers stay mounted with no container using them.
const idleLayers = 128

// layers mounts image layers, each once for all containers that use it. They
// stay mounted for the next container; the least recently used goes first.
type layers struct {
	images string // EROFS files
	dir    string // where they are mounted, by the same name

	initMu sync.Mutex
	inited bool // the one that lies under all others is there

	mu   sync.Mutex
	all  map[string]*layer
	idle []*layer // refs == 0, least recently used first
}

// layer is one that is mounted, or about to be.
type layer struct {
	name string
	refs int
	once func() error // mounts it
}

func newLayers(images, dir string) *layers {
	return &layers{images: images, dir: dir, all: map[string]*layer{}}
}

// init makes the layer that lies under all others, unless it is there.
func (l *layers) init() error {
	l.initMu.Lock()
	defer l.initMu.Unlock()
	if l.inited {
		return nil
	}
	err := makeInitLayer()
	l.inited = err == nil
	return err
}

// acquire mounts layers, all at once, and returns their paths in the same
// order. release undoes it.
func (l *layers) acquire(names []string) (paths []string, err error) {
	var eg errgroup.Group
	l.mu.Lock()
	for _, n := range names {
		y, ok := l.all[n]
		if !ok {
			y = &layer{name: n, once: sync.OnceValue(func() error { return l.mount(n) })}
			l.all[n] = y
		}
		if y.refs == 0 {
			l.idle = slices.DeleteFunc(l.idle, func(i *layer) bool { return i == y })
		}
		y.refs++
		eg.Go(y.once)
		paths = append(paths, filepath.Join(l.dir, n))
	}
	l.mu.Unlock()
	if err := eg.Wait(); err != nil {
		l.release(names)
		return nil, err
	}
	return paths, nil
}

// release says that a container uses the layers no longer.
func (l *layers) release(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		y := l.all[n]
		if y.refs--; y.refs > 0 {
			continue
		}
		if y.once() != nil { // never mounted: the next one tries again
			delete(l.all, n)
			continue
		}
		l.idle = append(l.idle, y)
	}
	for len(l.idle) > idleLayers {
		l.unmount(l.idle[0])
		l.idle = l.idle[1:]
	}
}

// sweep unmounts idle layers whose file the host has removed: as long as they
// are mounted the host's disk space isn't free.
func (l *layers) sweep() {
	l.mu.Lock()
	idle := slices.Clone(l.idle)
	l.mu.Unlock()
	for _, y := range idle {
		if stillNamed(filepath.Join(l.images, y.name)) {
			continue
		}
		l.mu.Lock()
		if i := slices.Index(l.idle, y); i >= 0 {
			l.unmount(y)
			l.idle = slices.Delete(l.idle, i, i+1)
		}
		l.mu.Unlock()
	}
}

// stillNamed says whether the host still has a layer's file. A mere stat would
// believe in names that the kernel has cached for an hour, and the cached name
// would hold the file. Where a new name is to be made the kernel asks the host
// again, and forgets the name when it's gone; the directory that is offered
// can't be linked to, so nothing is ever made.
func stillNamed(path string) bool {
	return errors.Is(unix.Link("/proc", path), fs.ErrExist)
}

func (l *layers) mount(name string) error {
	dir := filepath.Join(l.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount(filepath.Join(l.images, name), dir, "erofs", unix.MS_RDONLY, "")
	if err != nil {
		os.Remove(dir)
		return fmt.Errorf("mount layer %s: %w", name, err)
	}
	return nil
}

func (l *layers) unmount(y *layer) {
	dir := filepath.Join(l.dir, y.name)
	// An overlay that is being torn down may still hold it.
	unix.Unmount(dir, unix.MNT_DETACH)
	os.Remove(dir)
	delete(l.all, y.name)
}

// unmountAll unmounts what no container uses.
func (l *layers) unmountAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, y := range l.idle {
		l.unmount(y)
	}
	l.idle = nil
}
