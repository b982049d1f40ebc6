package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	eventFiles = 50   // one after the other: made, changed, renamed, removed
	eventFlood = 2000 // at once
)

// eventRows are about what the host changes in a shared folder, as inotifywait
// sees it. Its way from the container, a stream through the daemon, counts too.
func (b *bench) eventRows() []row {
	at := func(percent int) func(context.Context, bool) (float64, error) {
		return func(ctx context.Context, guest bool) (float64, error) { return b.eventLatency(ctx, guest, percent) }
	}
	line := func(name, unit string, do func(context.Context, bool) (float64, error)) row {
		return row{name, "inotifywait on the host", "a round trip to the agent, two FUSE requests, a stream back", unit,
			func(ctx context.Context) (float64, error) { return do(ctx, true) },
			func(ctx context.Context) (float64, error) { return do(ctx, false) }}
	}
	return []row{
		line(fmt.Sprintf("create, modify, rename, delete on the host, to a watcher: median of %d", 4*eventFiles), "ms", at(50)),
		line(fmt.Sprintf("create, modify, rename, delete on the host, to a watcher: worst of %d", 4*eventFiles), "ms", at(100)),
		line(fmt.Sprintf("file events: %d at once", eventFlood), "1/s", b.eventRate),
	}
}

// watch runs inotifywait on a new folder, in a container or on the host, and
// returns the folder on the host and the lines.
func (b *bench) watch(ctx context.Context, guest bool) (dir string, lines *bufio.Scanner, end func(), err error) {
	args, err := b.inotifywait()
	if err != nil {
		return "", nil, nil, err
	}
	if dir, err = os.MkdirTemp(b.share, "events"); err != nil {
		return "", nil, nil, err
	}
	options := []string{"-m", "-e", "create,modify,move,delete", "--format", "%e %f"}
	var cmd *exec.Cmd
	if guest {
		args = append(append([]string{"exec", "server"}, args...), options...)
		cmd = b.command(ctx, append(args, "/share/"+filepath.Base(dir))...)
	} else {
		cmd = exec.CommandContext(ctx, "inotifywait", append(options, dir)...)
	}
	cmd.Stderr = nil
	stdout, err1 := cmd.StdoutPipe()
	stderr, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return "", nil, nil, err
	}
	end = func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	}
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		if strings.Contains(sc.Text(), "established") {
			go io.Copy(io.Discard, stderr)
			return dir, bufio.NewScanner(stdout), end, nil
		}
	}
	end()
	return "", nil, nil, errors.New("inotifywait has not begun to watch")
}

// inotifywait is the command in a container that runs the host's program.
func (b *bench) inotifywait() ([]string, error) {
	program, err := exec.LookPath("inotifywait")
	if err != nil {
		return nil, fmt.Errorf("%w: no inotifywait (apt install inotify-tools)", errMissing)
	}
	libs, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	tools := filepath.Join(b.share, "tools")
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return nil, err
	}
	loader := ""
	for _, path := range append(strings.Fields(string(libs)), program) {
		if !filepath.IsAbs(path) {
			continue
		}
		if strings.Contains(path, "/ld-linux") {
			loader = filepath.Base(path)
		}
		to := filepath.Join(tools, filepath.Base(path))
		if _, err := os.Stat(to); err == nil {
			continue
		}
		body, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(to, body, 0o755)
		}
		if err != nil {
			return nil, err
		}
	}
	return []string{"/share/tools/" + loader, "--library-path", "/share/tools", "/share/tools/inotifywait"}, nil
}

func (b *bench) eventLatency(ctx context.Context, guest bool, percent int) (float64, error) {
	dir, lines, end, err := b.watch(ctx, guest)
	if err != nil {
		return 0, err
	}
	defer end()
	var times []float64
	for i := range eventFiles {
		name := fmt.Sprint(i)
		path := filepath.Join(dir, name)
		for _, step := range []struct {
			do   func() error
			want string
		}{
			{func() error { return os.WriteFile(path, nil, 0o644) }, "CREATE " + name},
			{func() error { return os.Truncate(path, 1) }, "MODIFY " + name},
			{func() error { return os.Rename(path, path+"new") }, "MOVED_TO " + name + "new"},
			{func() error { return os.Remove(path + "new") }, "DELETE " + name + "new"},
		} {
			ms, err := millis(func() error {
				if err := step.do(); err != nil {
					return err
				}
				for lines.Scan() {
					if lines.Text() == step.want {
						return nil
					}
				}
				return fmt.Errorf("inotifywait ended before %q", step.want)
			})
			if err != nil {
				return 0, err
			}
			times = append(times, ms)
			time.Sleep(10 * time.Millisecond) // each for itself
		}
	}
	slices.Sort(times)
	return times[len(times)*percent/100-1], nil
}

func (b *bench) eventRate(ctx context.Context, guest bool) (float64, error) {
	dir, lines, end, err := b.watch(ctx, guest)
	if err != nil {
		return 0, err
	}
	defer end()
	ms, err := millis(func() error {
		for i := range eventFlood {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
				return err
			}
		}
		for i := range eventFlood {
			if !lines.Scan() {
				return fmt.Errorf("inotifywait ended after %d events", i)
			}
		}
		return nil
	})
	return eventFlood * 1000 / ms, err
}
