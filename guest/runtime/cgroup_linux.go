package runtime

import (
	"bytes"
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

// cgroup is a container's control group (v2).
type cgroup struct {
	path string
	// late are settings that would hurt stage 2, which needs time and a few MiB;
	// they are made right before the process is let go.
	late []setting
	// pids is the limit of processes, "" for none. Stage 2 sets it, at the last
	// moment: it has several threads.
	pids string
}

// setting is a value to write to one of a cgroup's files.
type setting struct{ file, value string }

// lateFiles are those whose limits stage 2 could exceed.
var lateFiles = []string{"memory.max", "memory.high", "memory.swap.max", "cpu.max"}

const pidsFile = "pids.max"

// newCgroup makes a cgroup without limits. Its name means nothing: it may exist
// before its container does.
func (r *Runtime) newCgroup() (*cgroup, error) {
	c := &cgroup{path: filepath.Join(r.opts.Cgroup, fmt.Sprintf("c%d", r.cgroups.Add(1)))}
	if err := os.Mkdir(c.path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return c, nil
}

// configure sets the limits, but for the late ones, and the devices.
func (c *cgroup) configure(settings []setting, devices *deviceCache, resources *specs.LinuxResources) error {
	for _, s := range settings {
		switch {
		case s.file == pidsFile:
			c.pids = s.value
		case slices.Contains(lateFiles, s.file):
			c.late = append(c.late, s)
		default:
			if err := c.write(s); err != nil {
				return err
			}
		}
	}
	if resources == nil {
		return nil
	}
	return devices.attach(c.path, resources.Devices)
}

// remove removes a cgroup that nothing has been in.
func (c *cgroup) remove() error { return os.Remove(c.path) }

func (c *cgroup) write(s setting) error {
	if err := os.WriteFile(filepath.Join(c.path, s.file), []byte(s.value), 0o644); err != nil {
		return fmt.Errorf("set %s to %q: %w", s.file, s.value, err)
	}
	return nil
}

// pidsMax opens the file for the limit of processes; nil when there is no limit.
func (c *cgroup) pidsMax() (*os.File, error) {
	if c.pids == "" {
		return nil, nil
	}
	return os.OpenFile(filepath.Join(c.path, pidsFile), os.O_WRONLY, 0)
}

// limit makes the late settings.
func (c *cgroup) limit() error {
	for _, s := range c.late {
		if err := c.write(s); err != nil {
			return err
		}
	}
	return nil
}

// open opens the cgroup to clone into it.
func (c *cgroup) open() (*os.File, error) {
	fd, err := unix.Open(c.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open cgroup", Path: c.path, Err: err}
	}
	return os.NewFile(uintptr(fd), c.path), nil
}

// openForExec opens the cgroup that one more process is cloned into: the
// container's, or where its first process is if the container has handed
// controllers down to cgroups of its own (a systemd or a Docker inside does):
// then nothing can be in the upper one any more.
//
// For a moment the new process has the descriptor, where a process with
// CAP_SYS_PTRACE might reach for it. So it's no way out: a mount of this
// directory alone, read-only and attached to nothing.
func (c *cgroup) openForExec(first int) (*os.File, error) {
	path := c.path
	handed, err := os.ReadFile(filepath.Join(path, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(handed)) > 0 {
		if path, err = c.below(first); err != nil {
			return nil, err
		}
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open cgroup", Path: path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make cgroup %s read-only: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// below is the path of the cgroup that a process of the container is in.
func (c *cgroup) below(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	_, name, _ := strings.Cut(strings.TrimSpace(string(text)), "::")
	// The hierarchy's names begin above where this process has it mounted.
	_, rest, ours := strings.Cut(name+"/", "/"+filepath.Base(c.path)+"/")
	if !ours {
		return "", fmt.Errorf("process %d of the container is in cgroup %s, not below %s", pid, name, c.path)
	}
	return filepath.Join(c.path, rest), nil
}

// event is a counter in one of the cgroup's flat files; 0 when it isn't there.
func (c *cgroup) event(file, key string) int64 {
	text, err := os.ReadFile(filepath.Join(c.path, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == key {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}

func (c *cgroup) oomKilled() bool { return c.event("memory.events", "oom_kill") > 0 }

// signal sends a signal to every process in the cgroup and those below it.
// SIGKILL reaches also what is forked meanwhile.
func (c *cgroup) signal(sig int) error {
	if sig == int(unix.SIGKILL) {
		return c.write(setting{"cgroup.kill", "1"})
	}
	return filepath.WalkDir(c.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreMissing(err)
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return ignoreMissing(err)
		}
		for _, word := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil || pid <= 0 {
				continue
			}
			if err := unix.Kill(pid, unix.Signal(sig)); err != nil && err != unix.ESRCH {
				return fmt.Errorf("send signal %d to process %d: %w", sig, pid, err)
			}
		}
		return nil
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// destroy kills what is in the cgroup, waits until it's empty and removes it
// with what is below it. Idempotent.
func (c *cgroup) destroy(ctx context.Context) error {
	err := c.write(setting{"cgroup.kill", "1"})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.awaitEmpty(ctx); err != nil {
		return err
	}
	var dirs []string
	err = filepath.WalkDir(c.path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return ignoreMissing(err)
	})
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, ignoreMissing(os.Remove(dir)))
	}
	return err
}

// awaitEmpty waits until no process is left.
func (c *cgroup) awaitEmpty(ctx context.Context) error { return c.await(ctx, "populated 0") }

// await waits until the cgroup says so: the kernel tells changes of
// cgroup.events as POLLPRI.
func (c *cgroup) await(ctx context.Context, state string) error {
	const lookUp = 200 // ms; how late a cancelled ctx is noticed
	fd, err := unix.Open(filepath.Join(c.path, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ignoreMissing(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return ignoreMissing(err)
		}
		if strings.Contains(string(buf[:n]), state) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for cgroup %s to be %s: %w", c.path, state, ctx.Err())
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, lookUp)
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}
