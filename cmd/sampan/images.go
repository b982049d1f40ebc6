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
	digest, rawDigest := "", ""
	if f.digests {
		digest, rawDigest = "{{.Digest}}\t", "digest: {{.Digest}}\n"
	}
	format := f.format
	switch {
	case f.quiet && (format == "" || format == "table"):
		format = "{{.ID}}"
	case f.quiet && format == "raw":
		format = "image_id: {{.ID}}"
	case format == "raw":
		format = "repository: {{.Repository}}\ntag: {{.Tag}}\n" + rawDigest + "image_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n"
	}
	return writeRows(a.out, format, "{{.Repository}}\t{{.Tag}}\t"+digest+"{{.ID}}\t{{.CreatedSince}}\t{{.Size}}", imageHeader(), rows)
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

// newImageRows has a row for each name of the image, and for each of its digests
// in the repository, if they are to be seen.
func newImageRows(img image.Summary, f imagesFlags, now time.Time) []imageRow {
	base := imageRow{
		Containers: "N/A", CreatedAt: time.Unix(img.Created, 0).String(), CreatedSince: ago(img.Created, now),
		Digest: noName, ID: img.ID, Repository: noName, Tag: noName,
		SharedSize: "N/A", UniqueSize: "N/A", Size: humanSize(img.Size), VirtualSize: units.HumanSize(float64(img.Size)),
	}
	if !f.noTrunc {
		base.ID = shortID(img.ID)
	}
	digests := map[string][]string{} // by repository
	for _, d := range img.RepoDigests {
		if repo, digest, ok := strings.Cut(d, "@"); ok {
			repo = familiarRepo(repo)
			digests[repo] = append(digests[repo], digest)
		}
	}
	var rows []imageRow
	add := func(repo, tag string) {
		r := base
		r.Repository, r.Tag = repo, tag
		if !f.digests && !strings.Contains(f.format, "{{.Digest}}") || len(digests[repo]) == 0 {
			rows = append(rows, r)
			return
		}
		for _, r.Digest = range digests[repo] {
			rows = append(rows, r)
		}
	}
	named := map[string]bool{}
	for _, t := range img.RepoTags {
		i := strings.LastIndexByte(t, ':')
		if i < 0 || strings.Contains(t[i:], "/") || t == "<none>:<none>" {
			continue
		}
		repo := familiarRepo(t[:i])
		named[repo] = true
		add(repo, t[i+1:])
	}
	for _, repo := range slices.Sorted(maps.Keys(digests)) {
		if !named[repo] {
			add(repo, noName)
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
