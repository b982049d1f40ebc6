package main

import (
	"context"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newLogsCommand(a *app) *cobra.Command {
	opts := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}
	cmd := &cobra.Command{
		Use:   "logs [OPTIONS] CONTAINER",
		Short: "Fetch the logs of a container",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.logs(cmd.Context(), args[0], opts)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&opts.Details, "details", false, "Show extra details provided to logs")
	fs.BoolVarP(&opts.Follow, "follow", "f", false, "Follow log output")
	fs.StringVar(&opts.Since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fs.StringVarP(&opts.Tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fs.BoolVarP(&opts.Timestamps, "timestamps", "t", false, "Show timestamps")
	fs.StringVar(&opts.Until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	return cmd
}

func (a *app) logs(ctx context.Context, name string, opts client.ContainerLogsOptions) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	logs, err := docker.ContainerLogs(ctx, res.Container.ID, opts)
	if err != nil {
		return err
	}
	defer logs.Close()
	if res.Container.Config.Tty {
		_, err = io.Copy(a.out, logs)
	} else {
		_, err = stdcopy.StdCopy(a.out, a.err, logs)
	}
	return err
}
