package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Freeze stops all processes of the container where they are, or lets them go
// on, and waits until that is so.
func (c *Container) Freeze(ctx context.Context, frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	if err := c.cgroup.write(setting{"cgroup.freeze", value}); err != nil {
		return err
	}
	return c.cgroup.await(ctx, "frozen "+value)
}

// Update changes limits while the container runs. Those that the resources
// don't name stay. Devices can't be changed.
func (c *Container) Update(r *specs.LinuxResources) error {
	settings, err := cgroupSettings(r)
	if err != nil {
		return err
	}
	// A new limit of memory may want swap's raised first, or lowered after: both
	// are files of their own in cgroup v2, and any order will do.
	for _, s := range settings {
		if err := c.cgroup.write(s); err != nil {
			return err
		}
	}
	return nil
}

// Pids lists the container's processes, in the agent's pid namespace.
func (c *Container) Pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(c.cgroup.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreMissing(err)
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup
			return nil
		}
		if err != nil {
			return ignoreMissing(err)
		}
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	slices.Sort(pids)
	return pids, err
}

// Figures reads one of the cgroup's files of "KEY NUMBER" lines.
func (c *Container) Figures(file string) (map[string]uint64, error) {
	text, err := os.ReadFile(filepath.Join(c.cgroup.path, file))
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			m[key] = n
		}
	}
	return m, nil
}

// Figure reads one of the cgroup's files of one number; "max" is 0.
func (c *Container) Figure(file string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(c.cgroup.path, file))
	if err != nil {
		return 0, err
	}
	word := strings.TrimSpace(string(text))
	if word == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// DeviceFigures reads io.stat: figures by "MAJOR:MINOR" and key.
func (c *Container) DeviceFigures() (map[string]map[string]uint64, error) {
	text, err := os.ReadFile(filepath.Join(c.cgroup.path, "io.stat"))
	if err != nil {
		return nil, err
	}
	m := map[string]map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		dev := map[string]uint64{}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				dev[key] = n
			}
		}
		m[words[0]] = dev
	}
	return m, nil
}
