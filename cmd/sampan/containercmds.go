package main

import (
	"context"
	"fmt"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// newContainerCommand holds the commands about containers once more, under the
// names that Docker gives them there.
func newContainerCommand(a *app) *cobra.Command {
	ls := newPsCommand(a)
	ls.Use, ls.Aliases = "ls [OPTIONS]", []string{"ps", "list"}
	return group("container", "Manage containers",
		newAttachCommand(a), newCommitCommand(a), newCpCommand(a), newCreateCommand(a), newDiffCommand(a), newExecCommand(a),
		newExportCommand(a), newContainerInspectCommand(a), newKillCommand(a), newLogsCommand(a), ls, newPauseCommand(a),
		newPortCommand(a), newContainerPruneCommand(a), newRenameCommand(a), newRestartCommand(a), newRmCommand(a),
		newRunCommand(a), newStartCommand(a), newStatsCommand(a), newStopCommand(a), newTopCommand(a), newUnpauseCommand(a),
		newUpdateCommand(a), newWaitCommand(a))
}

func newContainerInspectCommand(a *app) *cobra.Command {
	var (
		format string
		size   bool
	)
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Display detailed information on one or more containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, format, func(ctx context.Context, docker *client.Client, name string) (inspected, error) {
				return inspectAny(ctx, docker, name, "container", size)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
	return cmd
}

func newContainerPruneCommand(a *app) *cobra.Command {
	var (
		force      bool
		conditions filterFlag
	)
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove all stopped containers",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !a.confirm("WARNING! This will remove all stopped containers.\nAre you sure you want to continue?") {
				return nil
			}
			return a.containerPrune(cmd.Context(), client.ContainerPruneOptions{Filters: conditions.Filters})
		},
	}
	cmd.Flags().Var(&conditions, "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

func (a *app) containerPrune(ctx context.Context, opts client.ContainerPruneOptions) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	freed, err := a.pruneContainers(ctx, docker, opts.Filters)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, "Total reclaimed space:", units.HumanSize(float64(freed)))
	return nil
}

func newCommitCommand(a *app) *cobra.Command {
	var (
		opts           client.ContainerCommitOptions
		pause, noPause bool
	)
	cmd := &cobra.Command{
		Use:   "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
		Short: "Create a new image from a container's changes",
		Args:  argCount(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				opts.Reference = args[1]
			}
			opts.NoPause = noPause || !pause
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.ContainerCommit(cmd.Context(), args[0], opts)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, res.ID)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&opts.Author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	listVar(fs, &opts.Changes, "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&opts.Comment, "message", "m", "", "Commit message")
	fs.BoolVarP(&pause, "pause", "p", true, "Pause container during commit")
	fs.BoolVar(&noPause, "no-pause", false, "Disable pausing container during commit")
	fs.Lookup("pause").Hidden = true // the older name
	return cmd
}
