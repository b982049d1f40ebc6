package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// moduleList names the modules to load, dependencies first: a file per line,
// relative to the list's folder, with parameters after it. A blank line parts
// what the boot needs from what can wait. Lines with # are comments.
const moduleList = "/lib/modules/load"

// module is one line of moduleList.
type module struct {
	path, params string
}

// parseModules splits the list in what the boot needs and the rest.
func parseModules(list string) (first, later []module) {
	dst := &first
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			if len(first) > 0 {
				dst = &later
			}
			continue
		case line[0] == '#':
			continue
		}
		path, params, _ := strings.Cut(line, " ")
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(moduleList), path)
		}
		*dst = append(*dst, module{path, strings.TrimSpace(params)})
	}
	return first, later
}

// openModule is a module whose file is open, and may have been deleted.
type openModule struct {
	module
	file *os.File
}

// openModules opens modules for loadModules.
func openModules(list []module) ([]openModule, error) {
	out := make([]openModule, 0, len(list))
	for _, m := range list {
		f, err := os.Open(m.path)
		if err != nil {
			for _, o := range out {
				o.file.Close()
			}
			return nil, err
		}
		out = append(out, openModule{m, f})
	}
	return out, nil
}

// loadModules loads modules, some at a time, and closes their files. One that
// another one needs has been begun before it, and mostly the kernel waits for
// it; where it has come too early, the kernel doesn't know a symbol, or gives
// up its wait (EBUSY) for any signal, such as those of Go's scheduler; then it
// has another try when all before it are there. One that is loaded already is
// no error.
func loadModules(list []openModule, atATime int) error {
	done := make([]chan struct{}, len(list))
	for i := range done {
		done[i] = make(chan struct{})
	}
	var eg errgroup.Group
	eg.SetLimit(atATime) // begins them in order
	for i, m := range list {
		eg.Go(func() error {
			defer close(done[i])
			defer m.file.Close()
			err := m.load()
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) {
				for _, before := range done[:i] {
					<-before
				}
				err = m.load()
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("load %s: %w", m.path, err)
			}
			return nil
		})
	}
	return eg.Wait()
}

func (m openModule) load() error {
	flags := 0
	switch filepath.Ext(m.path) {
	case ".xz", ".zst", ".gz":
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(m.file.Fd()), m.params, flags)
}
