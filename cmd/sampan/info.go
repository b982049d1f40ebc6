package main

import (
	"context"
	"fmt"
	"text/template"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newInfoCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [OPTIONS]",
		Short: "Display system-wide information",
		Args:  argCount(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.info(cmd.Context(), format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	return cmd
}

func (a *app) info(ctx context.Context, format string) error {
	var t *template.Template
	if format == "json" {
		format = "{{json .}}"
	}
	if format != "" {
		var err error
		if t, err = newTemplate(format); err != nil {
			return &exitError{code: 64, text: err.Error()}
		}
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	i := res.Info
	if t != nil {
		return execute(a.out, t, i)
	}
	a.fields("Client:", [][2]string{{"Version", a.build}})
	fmt.Fprintln(a.out)
	server := [][2]string{
		{"Containers", fmt.Sprint(i.Containers)},
		{" Running", fmt.Sprint(i.ContainersRunning)},
		{" Paused", fmt.Sprint(i.ContainersPaused)},
		{" Stopped", fmt.Sprint(i.ContainersStopped)},
		{"Images", fmt.Sprint(i.Images)},
		{"Server Version", i.ServerVersion},
		{"Storage Driver", i.Driver},
		{"Logging Driver", i.LoggingDriver},
		{"Cgroup Driver", i.CgroupDriver},
		{"Cgroup Version", i.CgroupVersion},
		{"Kernel Version", i.KernelVersion},
		{"Operating System", i.OperatingSystem},
		{"OSType", i.OSType},
		{"Architecture", i.Architecture},
		{"CPUs", fmt.Sprint(i.NCPU)},
		{"Total Memory", units.BytesSize(float64(i.MemTotal))},
		{"Name", i.Name},
		{"ID", i.ID},
		{"Root Dir", i.DockerRootDir},
	}
	for _, proxy := range [][2]string{{"HTTP Proxy", i.HTTPProxy}, {"HTTPS Proxy", i.HTTPSProxy}, {"No Proxy", i.NoProxy}} {
		if proxy[1] != "" {
			server = append(server, proxy)
		}
	}
	a.fields("Server:", server)
	for _, w := range i.Warnings {
		fmt.Fprintln(a.err, w)
	}
	return nil
}
