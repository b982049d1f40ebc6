package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func newPullCommand(a *app) *cobra.Command {
	var (
		all, quiet bool
		platform   string
	)
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short: "Download an image from a registry",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := reference.ParseNormalizedNamed(args[0])
			if err != nil {
				return err
			}
			switch {
			case all && !reference.IsNameOnly(ref):
				return errors.New("tag can't be used with --all-tags/-a")
			case !all && reference.IsNameOnly(ref):
				ref = reference.TagNameOnly(ref)
				if tagged, ok := ref.(reference.Tagged); ok && !quiet {
					fmt.Fprintln(a.out, "Using default tag:", tagged.Tag())
				}
			}
			opts := client.ImagePullOptions{All: all}
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			if p != nil {
				opts.Platforms = append(opts.Platforms, *p)
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			out := a.out
			if quiet {
				out = io.Discard
			}
			if err := a.pull(cmd.Context(), docker, reference.FamiliarString(ref), opts, out); err != nil {
				return err
			}
			fmt.Fprintln(a.out, ref.String())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all-tags", "a", false, "Download all tagged images in the repository")
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	return cmd
}

// pull shows the progress on out: bars on a terminal, else a line for each
// step.
func (a *app) pull(ctx context.Context, docker *client.Client, image string, opts client.ImagePullOptions, out io.Writer) error {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return err
	}
	if opts.RegistryAuth, err = a.registryAuth(ref); err != nil {
		return err
	}
	resp, err := docker.ImagePull(ctx, image, opts)
	if err != nil {
		return err
	}
	defer resp.Close()
	return showProgress(resp, out)
}

// pullForRun shows the progress to people: stdout is the container's.
func (a *app) pullForRun(ctx context.Context, docker *client.Client, image string, platform *ocispec.Platform, quiet bool) error {
	out := a.err
	if quiet {
		out = io.Discard
	}
	var opts client.ImagePullOptions
	if platform != nil {
		opts.Platforms = []ocispec.Platform{*platform}
	}
	return a.pull(ctx, docker, image, opts, out)
}
