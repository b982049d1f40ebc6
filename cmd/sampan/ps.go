package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

type psFlags struct {
	all, quiet, noTrunc, latest, size bool
	last                              int
	format                            string
	filters                           filterFlag
}

func newPsCommand(a *app) *cobra.Command {
	var f psFlags
	cmd := &cobra.Command{
		Use:     "ps [OPTIONS]",
		Aliases: []string{"ls", "list"},
		Short:   "List containers",
		Args:    argCount(0, 0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	fs.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	return cmd
}

func (a *app) ps(ctx context.Context, f psFlags) error {
	if f.quiet && f.format != "" {
		fmt.Fprintln(a.err, "WARNING: Ignoring custom format, because both --format and --quiet are set.")
		f.format = ""
	}
	if err := checkPsFormat(f.format); err != nil {
		return err
	}
	opts := client.ContainerListOptions{All: f.all, Size: f.size || strings.Contains(f.format, ".Size"), Filters: f.filters.Filters, Limit: max(f.last, 0)}
	if f.latest && f.last < 0 {
		opts.Limit = 1
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerList(ctx, opts)
	if err != nil {
		return err
	}
	rows := make([]psRow, 0, len(res.Items))
	for _, c := range res.Items {
		rows = append(rows, newPsRow(c, !f.noTrunc, time.Now()))
	}
	format := f.format
	if f.quiet {
		format = "{{.ID}}"
	}
	columns := "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
	if f.size {
		columns += "\t{{.Size}}"
	}
	return writeRows(a.out, format, columns, psHeader(), rows)
}

// checkPsFormat tries a format before anything is asked for, in Docker's words.
func checkPsFormat(format string) error {
	t, err := newTemplate(format)
	if err != nil {
		return fmt.Errorf("failed to parse template: %w", errors.Unwrap(err))
	}
	if err := execute(io.Discard, t, psRow{}); err != nil {
		return fmt.Errorf("failed to execute template: %w", errors.Unwrap(err))
	}
	return nil
}

// psRow has the fields of Docker's templates.
type psRow struct {
	Command, CreatedAt, ID, Image, Labels, LocalVolumes, Mounts, Names, Networks string
	// Platform is the title, or a nil *ocispec.Platform, as of Docker's own image
	// store (not containerd's).
	Platform                               any
	Ports, RunningFor, Size, State, Status string
	labels                                 map[string]string
	header                                 bool
}

// Label is the value of one label.
func (r psRow) Label(name string) string {
	if r.header {
		return name[strings.LastIndexByte(name, '.')+1:]
	}
	return r.labels[name]
}

func psHeader() psRow {
	return psRow{
		Command: "COMMAND", CreatedAt: "CREATED AT", ID: "CONTAINER ID", Image: "IMAGE", Labels: "LABELS",
		LocalVolumes: "LOCAL VOLUMES", Mounts: "MOUNTS", Names: "NAMES", Networks: "NETWORKS", Platform: "PLATFORM", Ports: "PORTS",
		RunningFor: "CREATED", Size: "SIZE", State: "STATE", Status: "STATUS", header: true,
	}
}

func newPsRow(c container.Summary, trunc bool, now time.Time) psRow {
	r := psRow{
		ID: c.ID, Image: c.Image, Command: strconv.Quote(c.Command),
		CreatedAt: time.Unix(c.Created, 0).String(), RunningFor: ago(c.Created, now),
		Status: c.Status, State: string(c.State), Ports: displayPorts(c.Ports), labels: c.Labels,
		Size: units.HumanSizeWithPrecision(float64(c.SizeRw), 3), LocalVolumes: "0",
		Platform: (*ocispec.Platform)(nil),
	}
	if c.Image == "" {
		r.Image = "<no image>"
	}
	if c.SizeRootFs > 0 {
		r.Size += " (virtual " + units.HumanSizeWithPrecision(float64(c.SizeRootFs), 3) + ")"
	}
	if trunc {
		r.ID = shortID(c.ID)
		r.Command = strconv.Quote(ellipsis(c.Command, 20))
		if c.ImageID != "" && shortID(c.Image) == shortID(c.ImageID) {
			r.Image = shortID(c.Image) // it has no name
		}
	}
	var names, mounts []string
	for _, n := range c.Names {
		if n = strings.TrimPrefix(n, "/"); !trunc || !strings.Contains(n, "/") { // without those that links give
			names = append(names, n)
		}
	}
	volumes := 0
	for _, m := range c.Mounts {
		name := m.Name
		if name == "" {
			name = m.Source
		} else {
			volumes++
		}
		if trunc {
			name = ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	r.Names, r.Mounts, r.Labels = strings.Join(names, ","), strings.Join(mounts, ","), joinLabels(c.Labels)
	r.LocalVolumes = strconv.Itoa(volumes)
	if c.NetworkSettings != nil {
		r.Networks = strings.Join(slices.Sorted(maps.Keys(c.NetworkSettings.Networks)), ",")
	}
	return r
}

func joinLabels(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
