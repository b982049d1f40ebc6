package main

import (
	"fmt"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// newImageCommand holds the commands about images under their longer names.
func newImageCommand(a *app) *cobra.Command {
	ls := newImagesCommand(a)
	ls.Use, ls.Aliases = "ls [OPTIONS] [REPOSITORY[:TAG]]", []string{"list"}
	rm := newRmiCommand(a)
	rm.Use, rm.Aliases = "rm [OPTIONS] IMAGE [IMAGE...]", []string{"remove"}
	return group("image", "Manage images",
		newHistoryCommand(a), newImportCommand(a), newImageInspectCommand(a), newLoadCommand(a), ls, newImagePruneCommand(a),
		newPullCommand(a), newPushCommand(a), rm, newSaveCommand(a), newTagCommand(a))
}

func newImageInspectCommand(a *app) *cobra.Command {
	var format, platform string
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] IMAGE [IMAGE...]",
		Short: "Display detailed information on one or more images",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			return a.inspect(cmd.Context(), args, format, imageInspector(p))
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().StringVar(&platform, "platform", "", `Inspect a specific platform of the image, "os[/arch[/variant]]"`)
	return cmd
}

func newImagePruneCommand(a *app) *cobra.Command {
	var (
		all, force bool
		conditions filterFlag
	)
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused images",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all dangling images"
			if all {
				what = "all images without at least one container associated to them"
			}
			if !force && !a.confirm("WARNING! This will remove "+what+".\nAre you sure you want to continue?") {
				return nil
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			freed, err := a.pruneImages(cmd, docker, all, conditions.Filters)
			if err == nil {
				fmt.Fprintln(a.out, "Total reclaimed space:", units.HumanSize(float64(freed)))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images, not just dangling ones")
	cmd.Flags().Var(&conditions, "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

// pruneImages tells what went, and returns how many bytes that were.
func (a *app) pruneImages(cmd *cobra.Command, docker *client.Client, all bool, conditions client.Filters) (uint64, error) {
	filters := client.Filters{}.Add("dangling", fmt.Sprint(!all))
	for key, values := range conditions {
		for v := range values {
			filters.Add(key, v)
		}
	}
	res, err := docker.ImagePrune(cmd.Context(), client.ImagePruneOptions{Filters: filters})
	if err != nil {
		return 0, err
	}
	if len(res.Report.ImagesDeleted) > 0 {
		fmt.Fprintln(a.out, "Deleted Images:")
		for _, step := range res.Report.ImagesDeleted {
			if step.Untagged != "" {
				fmt.Fprintln(a.out, "untagged:", step.Untagged)
			} else {
				fmt.Fprintln(a.out, "deleted:", step.Deleted)
			}
		}
		fmt.Fprintln(a.out)
	}
	return res.Report.SpaceReclaimed, nil
}
