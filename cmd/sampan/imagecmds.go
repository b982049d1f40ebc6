package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

func newLoadCommand(a *app) *cobra.Command {
	var (
		input string
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "load [OPTIONS]",
		Short: "Load an image from a tar archive or STDIN",
		Args:  argCount(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.load(cmd.Context(), input, quiet) },
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "Read from tar archive file, instead of STDIN")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	return cmd
}

func (a *app) load(ctx context.Context, input string, quiet bool) error {
	in := a.in
	if input != "" {
		f, err := os.Open(input)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	} else if _, is := term.GetFdInfo(a.in); is {
		return errors.New("requested load from stdin, but stdin is empty")
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	if _, is := term.GetFdInfo(a.out); !is {
		quiet = true // no bars for a file; the result is still told
	}
	// The transport would close a file that it sees as a ReadCloser.
	res, err := docker.ImageLoad(ctx, io.NopCloser(in), client.ImageLoadWithQuiet(quiet))
	if err != nil {
		return err
	}
	defer res.Close()
	return showProgress(res, a.out)
}

func newRmiCommand(a *app) *cobra.Command {
	var force, noPrune bool
	cmd := &cobra.Command{
		Use:   "rmi [OPTIONS] IMAGE [IMAGE...]",
		Short: "Remove one or more images",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rmi(cmd.Context(), args, client.ImageRemoveOptions{Force: force, PruneChildren: !noPrune})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents")
	return cmd
}

func (a *app) rmi(ctx context.Context, images []string, opts client.ImageRemoveOptions) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range images {
		res, err := docker.ImageRemove(ctx, name, opts)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, item := range res.Items {
			if item.Deleted != "" {
				fmt.Fprintln(a.out, "Deleted:", item.Deleted)
			} else {
				fmt.Fprintln(a.out, "Untagged:", item.Untagged)
			}
		}
	}
	return joinErrors(errs)
}

func newTagCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			_, err = docker.ImageTag(cmd.Context(), client.ImageTagOptions{Source: args[0], Target: args[1]})
			return err
		},
	}
}
