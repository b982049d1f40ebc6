package main

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newVolumeCommand(a *app) *cobra.Command {
	return group("volume", "Manage volumes",
		newVolumeCreateCommand(a), newVolumeExportCommand(a), newVolumeImportCommand(a), newVolumeInspectCommand(a), newVolumeListCommand(a),
		newVolumePruneCommand(a), newVolumeRemoveCommand(a))
}

func newVolumeCreateCommand(a *app) *cobra.Command {
	var (
		opts         client.VolumeCreateOptions
		labels, more []string
	)
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] [VOLUME]",
		Short: "Create a volume",
		Args:  argCount(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				opts.Name = args[0]
			}
			opts.Labels, opts.DriverOpts = keyValues(labels), keyValues(more)
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.VolumeCreate(cmd.Context(), opts)
			if err == nil {
				fmt.Fprintln(a.out, res.Volume.Name)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&opts.Driver, "driver", "d", "local", "Specify volume driver name")
	listVar(cmd.Flags(), &labels, "label", "", "Set metadata for a volume")
	listVar(cmd.Flags(), &more, "opt", "o", "Set driver specific options")
	return cmd
}

func newVolumeInspectCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] VOLUME [VOLUME...]",
		Short: "Display detailed information on one or more volumes",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, format, inspectVolume)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}

// volumeRow has the fields of Docker's templates.
type volumeRow struct {
	Driver, Labels, Mountpoint, Name, Scope, Size string
	labels                                        map[string]string
}

// Label is the value of one label.
func (r volumeRow) Label(name string) string { return r.labels[name] }

func newVolumeListCommand(a *app) *cobra.Command {
	var (
		conditions filterFlag
		format     string
		quiet      bool
	)
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Args:    argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.VolumeList(cmd.Context(), client.VolumeListOptions{Filters: conditions.Filters})
			if err != nil {
				return err
			}
			slices.SortFunc(res.Items, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
			var rows []volumeRow
			for _, v := range res.Items {
				row := volumeRow{Driver: v.Driver, Mountpoint: v.Mountpoint, Name: v.Name, Scope: v.Scope, Size: "N/A", Labels: joinLabels(v.Labels), labels: v.Labels}
				if v.UsageData != nil && v.UsageData.Size >= 0 {
					row.Size = units.HumanSize(float64(v.UsageData.Size))
				}
				rows = append(rows, row)
			}
			if quiet && format == "" {
				format = "{{.Name}}"
			}
			header := volumeRow{Driver: "DRIVER", Labels: "LABELS", Mountpoint: "MOUNTPOINT", Name: "VOLUME NAME", Scope: "SCOPE", Size: "SIZE"}
			return writeRows(a.out, format, "{{.Driver}}\t{{.Name}}", header, rows)
		},
	}
	cmd.Flags().VarP(&conditions, "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	cmd.Flags().StringVar(&format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	return cmd
}

func newVolumeRemoveCommand(a *app) *cobra.Command {
	var opts client.VolumeRemoveOptions
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] VOLUME [VOLUME...]",
		Aliases: []string{"remove"},
		Short:   "Remove one or more volumes",
		Args:    argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.VolumeRemove(cmd.Context(), name, opts)
				return name, err
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.Force, "force", "f", false, "Force the removal of one or more volumes")
	return cmd
}

func newVolumePruneCommand(a *app) *cobra.Command {
	var (
		all, force bool
		conditions filterFlag
	)
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused local volumes",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "anonymous local volumes not used by at least one container"
			if all {
				what = "all local volumes not used by at least one container"
			}
			if !force {
				if !a.confirm("WARNING! This will remove " + what + ".\nAre you sure you want to continue?") {
					return nil
				}
			}
			return a.pruneVolumes(cmd.Context(), client.VolumePruneOptions{All: all, Filters: conditions.Filters})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused volumes, not just anonymous ones")
	cmd.Flags().Var(&conditions, "filter", `Provide filter values (e.g. "label=<label>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

func (a *app) pruneVolumes(ctx context.Context, opts client.VolumePruneOptions) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.VolumePrune(ctx, opts)
	if err != nil {
		return err
	}
	if len(res.Report.VolumesDeleted) > 0 {
		fmt.Fprintln(a.out, "Deleted Volumes:")
		for _, v := range res.Report.VolumesDeleted {
			fmt.Fprintln(a.out, v)
		}
		fmt.Fprintln(a.out)
	}
	fmt.Fprintln(a.out, "Total reclaimed space:", units.HumanSize(float64(res.Report.SpaceReclaimed)))
	return nil
}

// confirm asks people; anything but yes is no.
func (a *app) confirm(question string) bool {
	fmt.Fprint(a.out, question, " [y/N] ")
	answer, _ := bufio.NewReader(a.in).ReadString('\n') // no answer is no
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer)))
}
