package stage2

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"sampan/guest/symlink"
)

// defaultDevices are in every container that has a /dev of its own
// (runtime-spec, config-linux.md, "Default Devices").
var defaultDevices = []Device{
	{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3},
	{Path: "/dev/zero", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 5},
	{Path: "/dev/full", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 7},
	{Path: "/dev/random", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 8},
	{Path: "/dev/urandom", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 9},
	{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Major: 5, Minor: 0},
}

// devLinks are links in every /dev, from the link to what it shows.
var devLinks = [][2]string{
	{"/dev/fd", "/proc/self/fd"},
	{"/dev/stdin", "/proc/self/fd/0"},
	{"/dev/stdout", "/proc/self/fd/1"},
	{"/dev/stderr", "/proc/self/fd/2"},
	{"/dev/ptmx", "pts/ptmx"},
}

// makeDevices fills /dev. The spec's nodes come first, so that they win.
func makeDevices(root *Root) error {
	if !root.DevLinks {
		return nil
	}
	for _, list := range [][]Device{root.Devices, defaultDevices} {
		for _, d := range list {
			if err := d.make(); err != nil {
				return fmt.Errorf("make device %s: %w", d.Path, err)
			}
		}
	}
	links := devLinks
	if _, err := os.Lstat("/proc/kcore"); err == nil {
		links = append(links[:len(links):len(links)], [2]string{"/dev/core", "/proc/kcore"})
	}
	for _, l := range links {
		if err := unix.Symlink(l[1], l[0]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make link %s: %w", l[0], err)
		}
	}
	return nil
}

func (d Device) make() error {
	name, err := symlink.Follow(d.Path, os.Readlink)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(name, d.Mode, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
	return unix.Lchown(name, int(d.UID), int(d.GID))
}
