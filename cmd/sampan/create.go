package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// Values of --pull.
const (
	pullAlways  = "always"
	pullMissing = "missing"
	pullNever   = "never"
)

func newCreateCommand(a *app) *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create a new container",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if f.env, err = a.proxies(f.env); err != nil {
				return runError(cmd, err)
			}
			req, err := f.request(args, os.LookupEnv)
			if err != nil {
				return runError(cmd, err)
			}
			// What the daemon refuses is no wrong usage here, as with docker.
			id, err := a.createContainer(cmd.Context(), &f, req)
			if err == nil {
				fmt.Fprintln(a.out, id)
			}
			return err
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// createContainer creates a container, pulling the image as --pull says.
func (a *app) createContainer(ctx context.Context, f *createFlags, req client.ContainerCreateOptions) (id string, err error) {
	ref, err := reference.ParseAnyReference(req.Config.Image)
	if err != nil {
		return "", err
	}
	var named reference.Named // nil: an ID
	if n, ok := ref.(reference.Named); ok {
		named = reference.TagNameOnly(n)
	}
	cid, err := newCIDFile(f.cidfile)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, cid.close()) }()
	docker, err := a.docker(ctx)
	if err != nil {
		return "", err
	}
	if f.pull == pullAlways {
		if err := a.pullForRun(ctx, docker, req.Config.Image, req.Platform, f.quiet); err != nil {
			return "", err
		}
	}
	created, err := docker.ContainerCreate(ctx, req)
	if errdefs.IsNotFound(err) && named != nil && f.pull == pullMissing {
		if !f.quiet {
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", reference.FamiliarString(named))
		}
		if err := a.pullForRun(ctx, docker, req.Config.Image, req.Platform, f.quiet); err != nil {
			return "", err
		}
		created, err = docker.ContainerCreate(ctx, req)
	}
	if err != nil {
		return "", err
	}
	for _, w := range created.Warnings {
		fmt.Fprintln(a.err, "WARNING:", w)
	}
	return created.ID, cid.write(created.ID)
}

// cidFile is the file of --cidfile; nil when there is none to write.
type cidFile struct {
	file    *os.File
	written bool
}

func newCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to create the container ID file: %w", err)
	}
	return &cidFile{file: f}, nil
}

func (c *cidFile) write(id string) error {
	if c == nil {
		return nil
	}
	c.written = true
	if _, err := c.file.WriteString(id); err != nil {
		return fmt.Errorf("failed to write the container ID to the file: %w", err)
	}
	return nil
}

// close removes the file if there is no container.
func (c *cidFile) close() error {
	if c == nil {
		return nil
	}
	err := c.file.Close()
	if !c.written {
		err = errors.Join(err, os.Remove(c.file.Name()))
	}
	return err
}
