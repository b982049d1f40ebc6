package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

func newExportCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] CONTAINER",
		Short: "Export a container's filesystem as a tar archive",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			return a.saveStream("export container", output, func() (io.ReadCloser, error) {
				return docker.ContainerExport(cmd.Context(), args[0], client.ContainerExportOptions{})
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

// saveStream writes what open gives to a file, or to stdout unless that is a
// terminal. A file is replaced only by the whole of it, and so can't be a device.
// Errors of the file say that action has failed.
func (a *app) saveStream(action, output string, open func() (io.ReadCloser, error)) error {
	if output == "" {
		if _, is := term.GetFdInfo(a.out); is {
			return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
		}
		r, err := open()
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(a.out, r)
		return err
	}
	if err := checkReplaceable(output); err != nil {
		return fmt.Errorf("failed to %s: %w", action, err)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return replaceFile(output, r)
}

// specialFiles are those that a rename would put out of the way; the first that
// fits is the word for a file.
var specialFiles = []struct {
	mode fs.FileMode
	word string
}{
	{fs.ModeDir, "a directory"},
	{fs.ModeSymlink, "a symbolic link directly"},
	{fs.ModeNamedPipe, "a named pipe (FIFO)"},
	{fs.ModeSocket, "a socket"},
	{fs.ModeCharDevice, "a character device file"},
	{fs.ModeDevice, "a block device file"},
	{fs.ModeIrregular, "an irregular file"},
}

// checkReplaceable refuses a path that no regular file can be renamed to, or whose
// replacement nobody wants.
func checkReplaceable(path string) error {
	dir := filepath.Dir(path)
	di, err := os.Stat(dir)
	if err == nil && !di.IsDir() {
		err = &fs.PathError{Op: "stat", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return fmt.Errorf("invalid output path: %w", err)
	}
	fi, err := os.Lstat(path) // the link itself is what a rename replaces
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("failed to stat output path: %w", err)
	}
	for _, s := range specialFiles {
		if fi.Mode()&s.mode != 0 {
			return fmt.Errorf("cannot write to %s", s.word)
		}
	}
	return nil
}

func replaceFile(path string, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Chmod(0o600), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func newDiffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff CONTAINER",
		Short: "Inspect changes to files or directories on a container's filesystem",
		Args:  argCount(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.diff(cmd.Context(), args[0]) },
	}
}

func (a *app) diff(ctx context.Context, name string) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerDiff(ctx, name, client.ContainerDiffOptions{})
	if err != nil {
		return err
	}
	for _, c := range res.Changes {
		letter := "C"
		switch c.Kind {
		case container.ChangeAdd:
			letter = "A"
		case container.ChangeDelete:
			letter = "D"
		}
		fmt.Fprintln(a.out, letter, c.Path)
	}
	return nil
}
