package main

import (
	"context"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func newSaveCommand(a *app) *cobra.Command {
	var output, platform string
	cmd := &cobra.Command{
		Use:   "save [OPTIONS] IMAGE [IMAGE...]",
		Short: "Save one or more images to a tar archive (streamed to STDOUT by default)",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			return a.save(cmd.Context(), args, output, p)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	cmd.Flags().StringVar(&platform, "platform", "", `Save only the given platform, "os[/arch[/variant]]"`)
	return cmd
}

func (a *app) save(ctx context.Context, images []string, output string, p *ocispec.Platform) error {
	var opts []client.ImageSaveOption
	if p != nil {
		opts = append(opts, client.ImageSaveWithPlatforms(*p))
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	return a.saveStream("save image", output, func() (io.ReadCloser, error) { return docker.ImageSave(ctx, images, opts...) })
}

func newImportCommand(a *app) *cobra.Command {
	var (
		changes           []string
		message, platform string
	)
	cmd := &cobra.Command{
		Use:   "import [OPTIONS] file|- [REPOSITORY[:TAG]]",
		Short: "Import the contents from a tarball to create a filesystem image",
		Args:  argCount(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := client.ImageImportOptions{Message: message, Changes: changes}
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			if p != nil {
				opts.Platform = *p
			}
			return a.importImage(cmd.Context(), args[0], strings.Join(args[1:], ""), opts)
		},
	}
	listVar(cmd.Flags(), &changes, "change", "c", "Apply Dockerfile instruction to the created image")
	cmd.Flags().StringVarP(&message, "message", "m", "", "Set commit message for imported image")
	cmd.Flags().StringVar(&platform, "platform", "", `Set platform of the image, "os[/arch[/variant]]"`)
	return cmd
}

func (a *app) importImage(ctx context.Context, source, ref string, opts client.ImageImportOptions) error {
	from := client.ImageImportSource{SourceName: "-"}
	switch u, err := url.Parse(source); {
	case source == "-":
		from.Source = io.NopCloser(a.in)
	case err == nil && (u.Scheme == "http" || u.Scheme == "https"):
		from.SourceName = source
	default:
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer f.Close()
		from.Source = f
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ImageImport(ctx, from, ref, opts)
	if err != nil {
		return err
	}
	defer res.Close()
	return showProgress(res, a.out)
}
