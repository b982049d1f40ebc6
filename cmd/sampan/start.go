package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newStartCommand(a *app) *cobra.Command {
	var (
		attach, interactive bool
		detachKeys          string
	)
	cmd := &cobra.Command{
		Use:   "start [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Start one or more stopped containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !attach && !interactive {
				return a.startAll(cmd.Context(), args)
			}
			if len(args) > 1 {
				return errors.New("you cannot start and attach multiple containers at once")
			}
			return a.startAttached(cmd.Context(), args[0], interactive, detachKeys)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	fs.BoolVarP(&interactive, "interactive", "i", false, "Attach container's STDIN")
	fs.StringVar(&detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	return cmd
}

func (a *app) startAll(ctx context.Context, names []string) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	var failed []string
	for _, name := range names {
		if err := a.start(ctx, docker, name); err != nil {
			fmt.Fprintln(a.err, plainText(err))
			failed = append(failed, name)
			continue
		}
		fmt.Fprintln(a.out, name)
	}
	if len(failed) > 0 {
		return fmt.Errorf("Error: failed to start containers: %s", strings.Join(failed, ", "))
	}
	return nil
}

func (a *app) startAttached(ctx context.Context, name string, stdin bool, detachKeys string) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	c := res.Container
	s := session{
		id: c.ID, tty: c.Config.Tty, stdin: stdin && c.Config.OpenStdin,
		detachKeys: detachKeys, sigProxy: !c.Config.Tty,
		autoRemove: c.HostConfig.AutoRemove, start: true,
	}
	code, err := a.foreground(ctx, docker, s)
	if errors.Is(err, errDetached) {
		fmt.Fprintln(a.err, err)
		return nil
	}
	if err != nil {
		return err
	}
	return exitWith(code)
}
