package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// versions has the fields of Docker's template.
type versions struct {
	Client clientVersion
	Server *client.ServerVersionResult
}

type clientVersion struct {
	Version    string
	APIVersion string `json:"ApiVersion"`
	GoVersion  string
	Os, Arch   string
}

func newVersionCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version [OPTIONS]",
		Short: "Show the Sampan version information",
		Args:  argCount(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context(), format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}

func (a *app) version(ctx context.Context, format string) error {
	v := versions{Client: clientVersion{
		Version: a.build, APIVersion: client.MaxAPIVersion, GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH,
	}}
	docker, err := a.docker(ctx)
	if err == nil {
		var res client.ServerVersionResult
		if res, err = docker.ServerVersion(ctx, client.ServerVersionOptions{}); err == nil {
			v.Server = &res
			v.Client.APIVersion = docker.ClientVersion()
		}
	}
	if format != "" {
		if format == "json" {
			format = "{{json .}}"
		}
		t, errTemplate := newTemplate(format)
		if errTemplate != nil {
			return &exitError{code: 64, text: errTemplate.Error()}
		}
		if errTemplate := execute(a.out, t, v); errTemplate != nil {
			return errTemplate
		}
		return err
	}
	c := v.Client
	a.fields("Client:", [][2]string{
		{"Version", c.Version}, {"API version", c.APIVersion}, {"Go version", c.GoVersion}, {"OS/Arch", c.Os + "/" + c.Arch},
	})
	if s := v.Server; s != nil {
		fmt.Fprintln(a.out)
		a.fields("Server: "+s.Platform.Name, [][2]string{
			{"Version", s.Version}, {"API version", s.APIVersion + " (minimum version " + s.MinAPIVersion + ")"}, {"OS/Arch", s.Os + "/" + s.Arch},
		})
		for _, c := range s.Components {
			fmt.Fprintf(a.out, " %s:\n", c.Name)
			fmt.Fprintf(a.out, "  %-18s%s\n", "Version:", c.Version)
		}
	}
	return err
}

// fields prints a titled list.
func (a *app) fields(title string, list [][2]string) {
	fmt.Fprintln(a.out, title)
	for _, f := range list {
		fmt.Fprintf(a.out, " %-19s%s\n", f[0]+":", f[1])
	}
}
