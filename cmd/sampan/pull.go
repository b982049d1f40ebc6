package main

import (
	"context"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

func newPullCommand(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short: "Download an image from a registry",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := reference.ParseNormalizedNamed(args[0])
			if err != nil {
				return err
			}
			if reference.IsNameOnly(ref) {
				ref = reference.TagNameOnly(ref)
				if tagged, ok := ref.(reference.Tagged); ok && !quiet {
					fmt.Fprintln(a.out, "Using default tag:", tagged.Tag())
				}
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			out := a.out
			if quiet {
				out = io.Discard
			}
			if err := pull(cmd.Context(), docker, reference.FamiliarString(ref), out); err != nil {
				return err
			}
			fmt.Fprintln(a.out, ref.String())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	return cmd
}

// pull shows the progress on out: bars on a terminal, else a line for each
// step.
func pull(ctx context.Context, docker *client.Client, image string, out io.Writer) error {
	resp, err := docker.ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer resp.Close()
	return jsonmessage.DisplayStream(resp, out)
}

// pullForRun shows the progress to people: stdout is the container's.
func (a *app) pullForRun(ctx context.Context, docker *client.Client, image string, quiet bool) error {
	out := a.err
	if quiet {
		out = io.Discard
	}
	return pull(ctx, docker, image, out)
}
