package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type imagesFlags struct {
	all, digests, noTrunc, quiet bool
	format                       string
	filters                      filterFlag
}

func newImagesCommand(a *app) *cobra.Command {
	var f imagesFlags
	cmd := &cobra.Command{
		Use:   "images [OPTIONS] [REPOSITORY[:TAG]]",
		Short: "List images",
		Args:  argCount(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				_ = f.filters.Set("reference=" + args[0]) // has its "="
			}
			return a.images(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all images (default hides intermediate images)")
	fs.BoolVar(&f.digests, "digests", false, "Show digests")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	return cmd
}

func (a *app) images(ctx context.Context, f imagesFlags) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ImageList(ctx, client.ImageListOptions{All: f.all, Filters: f.filters.Filters})
	if err != nil {
		return err
	}
	var rows []imageRow
	for _, img := range res.Items {
		rows = append(rows, newImageRows(img, f, time.Now())...)
	}
	format := f.format
	if f.quiet && format == "" {
		format = "{{.ID}}"
	}
	columns := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	if f.digests {
		columns = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return writeRows(a.out, format, columns, imageHeader(), rows)
}

// imageRow has the fields of Docker's templates.
type imageRow struct {
	Containers, CreatedAt, CreatedSince, Digest, ID, Repository, SharedSize, Size, Tag, UniqueSize, VirtualSize string
}

func imageHeader() imageRow {
	return imageRow{
		Containers: "CONTAINERS", CreatedAt: "CREATED AT", CreatedSince: "CREATED", Digest: "DIGEST", ID: "IMAGE ID",
		Repository: "REPOSITORY", SharedSize: "SHARED SIZE", Size: "SIZE", Tag: "TAG", UniqueSize: "UNIQUE SIZE", VirtualSize: "SIZE",
	}
}

const noName = "<none>"

// newImageRows has a row for each name of the image.
func newImageRows(img image.Summary, f imagesFlags, now time.Time) []imageRow {
	size := units.HumanSizeWithPrecision(float64(img.Size), 3)
	base := imageRow{
		Containers: "N/A", CreatedAt: time.Unix(img.Created, 0).String(), CreatedSince: ago(img.Created, now),
		Digest: noName, ID: img.ID, Repository: noName, Tag: noName,
		SharedSize: "N/A", UniqueSize: "N/A", Size: size, VirtualSize: size,
	}
	if !f.noTrunc {
		base.ID = shortID(img.ID)
	}
	digests := map[string]string{} // by repository
	for _, d := range img.RepoDigests {
		if repo, digest, ok := strings.Cut(d, "@"); ok {
			digests[familiarRepo(repo)] = digest
		}
	}
	var rows []imageRow
	named := map[string]bool{}
	for _, t := range img.RepoTags {
		i := strings.LastIndexByte(t, ':')
		if i < 0 || strings.Contains(t[i:], "/") || t == "<none>:<none>" {
			continue
		}
		r := base
		r.Repository, r.Tag = familiarRepo(t[:i]), t[i+1:]
		named[r.Repository] = true
		if d := digests[r.Repository]; d != "" {
			r.Digest = d
		}
		rows = append(rows, r)
	}
	for _, repo := range slices.Sorted(maps.Keys(digests)) {
		if !named[repo] {
			r := base
			r.Repository, r.Digest = repo, digests[repo]
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		rows = append(rows, base)
	}
	return rows
}

// familiarRepo is a repository as people name it: without docker.io/library.
func familiarRepo(repo string) string {
	if ref, err := reference.ParseNormalizedNamed(repo); err == nil {
		return reference.FamiliarName(ref)
	}
	return repo
}
