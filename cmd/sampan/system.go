package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newSystemCommand(a *app) *cobra.Command {
	return group("system", "Manage Sampan", newDiskUsageCommand(a), newEventsCommand(a), newInfoCommand(a), newSystemPruneCommand(a))
}

func newDiskUsageCommand(a *app) *cobra.Command {
	var (
		verbose bool
		format  string
	)
	cmd := &cobra.Command{
		Use:   "df [OPTIONS]",
		Short: "Show disk usage",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if verbose && format != "" && format != "json" {
				return fmt.Errorf("the verbose and the format options conflict")
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			du, err := docker.DiskUsage(cmd.Context(), client.DiskUsageOptions{Verbose: verbose, Containers: true, Images: true, Volumes: true, BuildCache: true})
			if err != nil {
				return err
			}
			if verbose {
				return a.diskUsageVerbose(du, format)
			}
			return writeRows(a.out, format, "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
				usageRow{Active: "ACTIVE", Reclaimable: "RECLAIMABLE", Size: "SIZE", TotalCount: "TOTAL", Type: "TYPE"}, usageRows(du))
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return cmd
}

// usageRow has the fields of Docker's templates.
type usageRow struct{ Active, Reclaimable, Size, TotalCount, Type string }

func usageRows(du client.DiskUsageResult) []usageRow {
	row := func(kind string, total, active, size, free int64) usageRow {
		r := usageRow{Type: kind, TotalCount: fmt.Sprint(total), Active: fmt.Sprint(active), Size: units.HumanSize(float64(size)), Reclaimable: units.HumanSize(float64(free))}
		if size > 0 {
			r.Reclaimable += fmt.Sprintf(" (%v%%)", free*100/size)
		}
		return r
	}
	i, c, v, b := du.Images, du.Containers, du.Volumes, du.BuildCache
	build := row("Build Cache", b.TotalCount, b.ActiveCount, b.TotalSize, b.Reclaimable)
	build.Reclaimable = units.HumanSize(float64(b.Reclaimable))
	return []usageRow{
		row("Images", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable),
		row("Containers", c.TotalCount, c.ActiveCount, c.TotalSize, c.Reclaimable),
		row("Local Volumes", v.TotalCount, v.ActiveCount, v.TotalSize, v.Reclaimable),
		build,
	}
}

type imageUsageRow struct{ Repository, Tag, ID, Created, Size, SharedSize, UniqueSize, Containers string }
type containerUsageRow struct{ ID, Image, Command, LocalVolumes, Size, Created, Status, Names string }
type volumeUsageRow struct{ Name, Links, Size string }

// diskUsageVerbose lists what takes the space.
func (a *app) diskUsageVerbose(du client.DiskUsageResult, format string) error {
	images, containers, volumes := imageUsage(du.Images), containerUsage(du.Containers), volumeUsage(du.Volumes)
	home, err := a.home()
	if err != nil {
		return err
	}
	host, err := allocated(home)
	if err != nil {
		return fmt.Errorf("measure %s: %w", home, err)
	}
	if format == "json" {
		return json.NewEncoder(a.out).Encode(map[string]any{"Images": images, "Containers": containers, "Volumes": volumes, "BuildCache": []string{}, "Host": host})
	}
	fmt.Fprintln(a.out, "Images space usage:")
	fmt.Fprintln(a.out)
	err = writeRows(a.out, "", "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.Created}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}",
		imageUsageRow{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"}, images)
	if err != nil {
		return err
	}
	fmt.Fprint(a.out, "\nContainers space usage:\n\n")
	err = writeRows(a.out, "", "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.Created}}\t{{.Status}}\t{{.Names}}",
		containerUsageRow{"CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"}, containers)
	if err != nil {
		return err
	}
	fmt.Fprint(a.out, "\nLocal Volumes space usage:\n\n")
	err = writeRows(a.out, "", "{{.Name}}\t{{.Links}}\t{{.Size}}", volumeUsageRow{"VOLUME NAME", "LINKS", "SIZE"}, volumes)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\nBuild cache usage: %s\n\n", units.HumanSize(float64(du.BuildCache.TotalSize)))
	type cacheRow struct{ ID, CacheType, Size, CreatedSince, LastUsedSince, UsageCount, Shared string }
	err = writeRows(a.out, "", "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}",
		cacheRow{"CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"}, nil)
	if err != nil {
		return err
	}
	fmt.Fprint(a.out, "\nOn this machine's disk:\n\n")
	return writeRows(a.out, "", "{{.What}}\t{{.Logical}}\t{{.Allocated}}", allocatedRow{"WHAT", "LOGICAL", "ALLOCATED"}, host)
}

func imageUsage(u client.ImagesDiskUsage) []imageUsageRow {
	rows := []imageUsageRow{}
	for _, img := range u.Items {
		for _, r := range newImageRows(img, imagesFlags{}, time.Now()) {
			rows = append(rows, imageUsageRow{Repository: r.Repository, Tag: r.Tag, ID: r.ID, Created: r.CreatedSince, Size: r.Size,
				SharedSize: units.HumanSize(float64(img.SharedSize)), UniqueSize: units.HumanSize(float64(img.Size - img.SharedSize)), Containers: fmt.Sprint(img.Containers)})
		}
	}
	return rows
}

func containerUsage(u client.ContainersDiskUsage) []containerUsageRow {
	rows := []containerUsageRow{}
	for _, c := range u.Items {
		r := newPsRow(c, true, time.Now())
		rows = append(rows, containerUsageRow{ID: r.ID, Image: r.Image, Command: r.Command, LocalVolumes: r.LocalVolumes,
			Size: humanSize(c.SizeRw), Created: r.RunningFor, Status: r.Status, Names: r.Names})
	}
	return rows
}

func volumeUsage(u client.VolumesDiskUsage) []volumeUsageRow {
	rows := []volumeUsageRow{}
	for _, v := range u.Items {
		r := volumeUsageRow{Name: v.Name, Links: "N/A", Size: "N/A"}
		if v.UsageData != nil {
			r.Links = fmt.Sprint(v.UsageData.RefCount)
			if v.UsageData.Size >= 0 {
				r.Size = units.HumanSize(float64(v.UsageData.Size))
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

type systemPruneFlags struct {
	all, force, volumes bool
	conditions          filterFlag
}

func newSystemPruneCommand(a *app) *cobra.Command {
	var f systemPruneFlags
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove unused data",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.volumes && len(f.conditions.Filters["until"]) > 0 {
				return fmt.Errorf(`ERROR: The "until" filter is not supported with "--volumes"`)
			}
			if !f.force && !a.confirm(f.warning()) {
				return nil
			}
			return a.systemPrune(cmd, f)
		},
	}
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "Remove all unused images not just dangling ones")
	cmd.Flags().Var(&f.conditions, "filter", `Provide filter values (e.g. "label=<key>=<value>")`)
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "Do not prompt for confirmation")
	cmd.Flags().BoolVar(&f.volumes, "volumes", false, "Prune anonymous volumes")
	return cmd
}

func (f systemPruneFlags) warning() string {
	list := []string{"all stopped containers", "all networks not used by at least one container"}
	if f.volumes {
		list = append(list, "all anonymous volumes not used by at least one container")
	}
	if f.all {
		list = append(list, "all images without at least one container associated to them", "all build cache")
	} else {
		list = append(list, "all dangling images", "unused build cache")
	}
	text := "WARNING! This will remove:\n  - " + strings.Join(list, "\n  - ") + "\n"
	var conditions []string
	for key, values := range f.conditions.Filters {
		for v := range values {
			conditions = append(conditions, key+"="+v)
		}
	}
	if slices.Sort(conditions); len(conditions) > 0 {
		text += "\n  Items to be pruned will be filtered with:\n  - " + strings.Join(conditions, "\n  - ") + "\n"
	}
	return text + "\nAre you sure you want to continue?"
}

func (a *app) systemPrune(cmd *cobra.Command, f systemPruneFlags) error {
	ctx := cmd.Context()
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	freed, err := a.pruneContainers(ctx, docker, f.conditions.Filters)
	if err != nil {
		return err
	}
	nets, err := docker.NetworkPrune(ctx, client.NetworkPruneOptions{Filters: f.conditions.Filters})
	if err != nil && !errdefs.IsNotImplemented(err) {
		return err
	}
	a.deleted("Networks", nets.Report.NetworksDeleted)
	if f.volumes {
		vols, err := docker.VolumePrune(ctx, client.VolumePruneOptions{Filters: f.conditions.Filters})
		if err != nil {
			return err
		}
		a.deleted("Volumes", vols.Report.VolumesDeleted)
		freed += vols.Report.SpaceReclaimed
	}
	n, err := a.pruneImages(cmd, docker, f.all, f.conditions.Filters)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, "Total reclaimed space:", units.HumanSize(float64(freed+n)))
	return nil
}

func (a *app) pruneContainers(ctx context.Context, docker *client.Client, filters client.Filters) (uint64, error) {
	res, err := docker.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: filters})
	if err != nil {
		return 0, err
	}
	a.deleted("Containers", res.Report.ContainersDeleted)
	return res.Report.SpaceReclaimed, nil
}

// deleted lists what has gone, if anything has.
func (a *app) deleted(kind string, names []string) {
	if len(names) > 0 {
		fmt.Fprintf(a.out, "Deleted %s:\n%s\n\n", kind, strings.Join(names, "\n"))
	}
}
