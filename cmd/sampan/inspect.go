package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func newInspectCommand(a *app) *cobra.Command {
	var (
		format, kind string
		size         bool
	)
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Short: "Return low-level information on containers, images, networks and volumes",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("type") && !slices.Contains([]string{"container", "image", "network", "volume"}, kind) {
				return fmt.Errorf(`unknown type: %q: must be one of "container", "image", "network", "volume"`, kind)
			}
			return a.inspect(cmd.Context(), args, format, func(ctx context.Context, docker *client.Client, name string) (inspected, error) {
				return inspectAny(ctx, docker, name, kind, size)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	cmd.Flags().StringVar(&kind, "type", "", "Only inspect objects of the given type")
	return cmd
}

// inspected is an object as the library knows it, and as the daemon sent it.
type inspected struct {
	typed any
	raw   []byte
}

type inspectFunc func(ctx context.Context, docker *client.Client, name string) (inspected, error)

// inspect prints what was found, then says what wasn't.
func (a *app) inspect(ctx context.Context, names []string, format string, get inspectFunc) error {
	var t *template.Template
	if format != "" && format != "json" {
		var err error
		if t, err = newTemplate(format); err != nil {
			return &exitError{code: 64, text: fmt.Sprintf("template parsing error: %v", errors.Unwrap(err))}
		}
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	found := []json.RawMessage{}
	var errs []error
	for _, name := range names {
		obj, err := get(ctx, docker, name)
		if err == nil && t != nil {
			err = a.inspectTemplate(t, obj)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, obj.raw)
	}
	if t != nil && len(found) == 0 {
		fmt.Fprintln(a.out) // Docker's writes a line of each, and one of none
	}
	switch format {
	case "":
		text, err := indented(found)
		if err != nil {
			return err
		}
		fmt.Fprint(a.out, text)
	case "json":
		text, err := json.Marshal(found)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.out, string(text))
	}
	return joinErrors(errs)
}

// inspectTemplate knows the library's names of fields (.ID), and those of the
// JSON (.Id).
func (a *app) inspectTemplate(t *template.Template, obj inspected) error {
	var typed bytes.Buffer
	errTyped := execute(&typed, t, obj.typed)
	out := typed.Bytes()
	// An address that isn't there is "" in the JSON only.
	if errTyped != nil || bytes.Contains(out, []byte("invalid IP")) || bytes.Contains(out, []byte("invalid Prefix")) {
		var decoded any
		dec := json.NewDecoder(bytes.NewReader(obj.raw))
		dec.UseNumber()
		if err := dec.Decode(&decoded); err != nil {
			return err
		}
		var loose bytes.Buffer
		err := execute(&loose, t.Option("missingkey=error"), decoded)
		switch {
		case err == nil:
			out = loose.Bytes()
		case errTyped != nil:
			return err // of the JSON's names, as docker tells it
		}
	}
	_, err := a.out.Write(out)
	return err
}

// inspectAny looks for a container, then an image, a network, a volume.
func inspectAny(ctx context.Context, docker *client.Client, name, kind string, size bool) (inspected, error) {
	kinds := []struct {
		kind string
		get  inspectFunc
	}{
		{"container", func(ctx context.Context, docker *client.Client, name string) (inspected, error) {
			res, err := docker.ContainerInspect(ctx, name, client.ContainerInspectOptions{Size: size})
			return inspected{res.Container, res.Raw}, err
		}},
		{"image", imageInspector(nil)},
		{"network", inspectNetwork},
		{"volume", inspectVolume},
	}
	for _, k := range kinds {
		if kind != "" && kind != k.kind {
			continue
		}
		obj, err := k.get(ctx, docker, name)
		if err == nil || kind != "" || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			return obj, err
		}
	}
	return inspected{}, fmt.Errorf("Error: No such object: %s", name)
}

// imageInspector finds images, of a platform if one is asked for.
func imageInspector(p *ocispec.Platform) inspectFunc {
	return func(ctx context.Context, docker *client.Client, name string) (inspected, error) {
		var raw bytes.Buffer
		opts := []client.ImageInspectOption{client.ImageInspectWithRawResponse(&raw)}
		if p != nil {
			opts = append(opts, client.ImageInspectWithPlatform(p))
		}
		res, err := docker.ImageInspect(ctx, name, opts...)
		return inspected{res.InspectResponse, raw.Bytes()}, err
	}
}

func inspectNetwork(ctx context.Context, docker *client.Client, name string) (inspected, error) {
	if strings.ContainsAny(name, "/:@") {
		return inspected{}, errdefs.ErrNotFound // no network has such a name
	}
	res, err := docker.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	return inspected{res.Network, res.Raw}, err
}

func inspectVolume(ctx context.Context, docker *client.Client, name string) (inspected, error) {
	if strings.ContainsAny(name, "/:@") {
		return inspected{}, errdefs.ErrNotFound // no volume has such a name
	}
	res, err := docker.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
	return inspected{res.Volume, res.Raw}, err
}
