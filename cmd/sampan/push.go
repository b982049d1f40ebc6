package main

import (
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

func newPushCommand(a *app) *cobra.Command {
	var (
		all, quiet bool
		platform   string
	)
	cmd := &cobra.Command{
		Use:   "push [OPTIONS] NAME[:TAG]",
		Short: "Upload an image to a registry",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := reference.ParseNormalizedNamed(args[0])
			switch {
			case err != nil:
				return err
			case all && !reference.IsNameOnly(ref):
				return fmt.Errorf("tag can't be used with --all-tags/-a")
			case !all && reference.IsNameOnly(ref):
				ref = reference.TagNameOnly(ref)
				if tagged, ok := ref.(reference.Tagged); ok && !quiet {
					fmt.Fprintln(a.out, "Using default tag:", tagged.Tag())
				}
			}
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			auth, err := a.registryAuth(ref)
			if err != nil {
				return err
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.ImagePush(cmd.Context(), reference.FamiliarString(ref), client.ImagePushOptions{All: all, RegistryAuth: auth, Platform: p})
			if err != nil {
				return err
			}
			defer res.Close()
			if !quiet {
				return showProgress(res, a.out)
			}
			if err := jsonmessage.DisplayStream(res, io.Discard); err != nil {
				return err
			}
			fmt.Fprintln(a.out, ref.String())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all-tags", "a", false, "Push all tags of an image to the repository")
	cmd.Flags().StringVar(&platform, "platform", "", `Push a platform-specific manifest as a single-platform image, "os[/arch[/variant]]"`)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	return cmd
}
