package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOverlay mounts layers (bottom first) under a writable directory; without
// one (the empty upper) it is read-only, and wants two layers or more. It
// uses the new mount API, since the options of 127 layers don't fit in
// mount(2)'s one page. What is written to an ephemeral one need not reach the
// disk: not when a process asks for that, and not when it is unmounted.
func mountOverlay(target string, layers []string, upper, work string, ephemeral bool) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fd)
	options := [][2]string{{"source", "overlay"}}
	for _, l := range slices.Backward(layers) { // topmost first
		options = append(options, [2]string{"lowerdir+", l})
	}
	if upper != "" {
		options = append(options, [2]string{"upperdir", upper}, [2]string{"workdir", work})
	}
	options = append(options,
		// What the upper directory holds must make sense on any lower ones: the
		// container may be started again on the same layers, mounted anew. And
		// without the lower ones' help: Changes reads it alone.
		[2]string{"index", "off"}, [2]string{"metacopy", "off"}, [2]string{"redirect_dir", "nofollow"}, [2]string{"xino", "auto"},
	)
	for _, o := range options {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return overlayError(fd, fmt.Sprintf("%s=%s", o[0], o[1]), err)
		}
	}
	if ephemeral {
		// The kernel's mark that something may be missing, from an earlier run in
		// this boot, where nothing is.
		if err := os.RemoveAll(filepath.Join(work, "work", "incompat")); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
		if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
			return overlayError(fd, "volatile", err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return overlayError(fd, "create", err)
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return overlayError(fd, "mount", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("overlay: attach: %w", err)
	}
	return nil
}

// overlayError adds what the kernel says about the failure (a message per
// read from the file system's context).
func overlayError(fd int, what string, err error) error {
	var said []string
	b := make([]byte, 1024)
	for range 8 {
		n, rerr := unix.Read(fd, b)
		if rerr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(b[:n])))
	}
	if len(said) > 0 {
		err = errors.Join(err, errors.New(strings.Join(said, "; ")))
	}
	return fmt.Errorf("overlay: %s: %w", what, err)
}
