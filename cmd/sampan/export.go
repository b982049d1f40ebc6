package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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
			return a.saveStream(output, func() (io.ReadCloser, error) {
				return docker.ContainerExport(cmd.Context(), args[0], client.ContainerExportOptions{})
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

// saveStream writes what open gives to a file, or to stdout unless that is a
// terminal. A file is replaced only by the whole of it.
func (a *app) saveStream(output string, open func() (io.ReadCloser, error)) error {
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
	fi, err := outputInfo(output)
	if err == nil && fi != nil && !fi.Mode().IsRegular() {
		err = errors.New("cannot write to a special file")
	}
	if err != nil {
		return fmt.Errorf("failed to export container: %w", err)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return replaceFile(output, r)
}

// outputInfo is what is at a path that a file is to be written to, nil when it is to
// be made; an error when it can't.
func outputInfo(path string) (fs.FileInfo, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("invalid output path: %w", err)
		}
		return nil, nil
	case err != nil:
		return nil, err
	case fi.IsDir():
		return nil, errors.New("cannot write to a directory")
	}
	return fi, nil
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
