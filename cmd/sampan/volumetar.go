package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/moby/term"
	"github.com/spf13/cobra"
)

// Docker has no endpoint for a volume's files; these are beside its API:
//
//	GET /sampan/volumes/NAME/tar   all files, as a tar
//	PUT /sampan/volumes/NAME/tar   unpacks a tar over what is there
func newVolumeExportCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] VOLUME",
		Short: "Export a volume's files as a tar archive",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.saveStream("export volume", output, func() (io.ReadCloser, error) {
				resp, err := a.volumeTar(cmd.Context(), http.MethodGet, args[0], nil)
				if err != nil {
					return nil, err
				}
				return resp.Body, nil
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return cmd
}

func newVolumeImportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import VOLUME FILE|-",
		Short: "Unpack a tar archive in a volume, which is created when missing",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.openInput(args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			resp, err := a.volumeTar(cmd.Context(), http.MethodPut, args[0], in)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		},
	}
}

func (a *app) volumeTar(ctx context.Context, method, name string, body io.Reader) (*http.Response, error) {
	if name == "" {
		return nil, errors.New("volume name is empty")
	}
	return a.ownCall(ctx, true, method, "/volumes/"+url.PathEscape(name)+"/tar", "application/x-tar", body)
}

// openInput opens a file, or stdin for "-".
func (a *app) openInput(path string) (io.ReadCloser, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("failed to open the archive: %w", err)
		}
		return f, nil
	}
	if _, is := term.GetFdInfo(a.in); is {
		return nil, errors.New("no archive on stdin, which is a terminal")
	}
	return io.NopCloser(a.in), nil
}
