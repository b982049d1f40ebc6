package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type historyFlags struct {
	human, noTrunc, quiet bool
	format, platform      string
}

func newHistoryCommand(a *app) *cobra.Command {
	var f historyFlags
	cmd := &cobra.Command{
		Use:   "history [OPTIONS] IMAGE",
		Short: "Show the history of an image",
		Args:  argCount(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.history(cmd, args[0], f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	fs.BoolVarP(&f.human, "human", "H", true, "Print sizes and dates in human readable format")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.StringVar(&f.platform, "platform", "", `Show history for the given platform, "os[/arch[/variant]]"`)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

func (a *app) history(cmd *cobra.Command, name string, f historyFlags) error {
	p, err := platformOf(f.platform)
	if err != nil {
		return err
	}
	var opts []client.ImageHistoryOption
	if p != nil {
		opts = append(opts, client.ImageHistoryWithPlatform(*p))
	}
	docker, err := a.docker(cmd.Context())
	if err != nil {
		return err
	}
	res, err := docker.ImageHistory(cmd.Context(), name, opts...)
	if err != nil {
		return err
	}
	var rows []historyRow
	for _, item := range res.Items {
		rows = append(rows, newHistoryRow(item, f, time.Now()))
	}
	format := f.format
	if f.quiet && (format == "" || format == "table") {
		format = "{{.ID}}"
	}
	header := historyRow{Comment: "COMMENT", CreatedAt: "CREATED AT", CreatedBy: "CREATED BY", CreatedSince: "CREATED", ID: "IMAGE", Size: "SIZE"}
	created := "CreatedSince"
	if !f.human {
		created = "CreatedAt"
	}
	return writeRows(a.out, format, "{{.ID}}\t{{."+created+"}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}", header, rows)
}

// historyRow has the fields of Docker's templates.
type historyRow struct{ Comment, CreatedAt, CreatedBy, CreatedSince, ID, Size string }

func newHistoryRow(item image.HistoryResponseItem, f historyFlags, now time.Time) historyRow {
	r := historyRow{
		Comment: item.Comment, CreatedBy: strings.ReplaceAll(item.CreatedBy, "\t", " "), ID: item.ID,
		CreatedAt: time.Unix(item.Created, 0).Format(time.RFC3339), Size: strconv.FormatInt(item.Size, 10),
	}
	r.CreatedSince = r.CreatedAt
	if f.human {
		r.CreatedSince = ago(item.Created, now)
		r.Size = units.HumanSizeWithPrecision(float64(item.Size), 3)
	}
	if !f.noTrunc {
		r.ID, r.CreatedBy = shortID(item.ID), ellipsis(r.CreatedBy, 45)
	}
	return r
}
