package main

import (
	"context"
	"errors"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newAttachCommand(a *app) *cobra.Command {
	var (
		noStdin bool
		s       session
	)
	cmd := &cobra.Command{
		Use:   "attach [OPTIONS] CONTAINER",
		Short: "Attach local standard input, output, and error streams to a running container",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.id = args[0]
			return a.attach(cmd.Context(), s, !noStdin)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&s.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	fs.BoolVar(&s.sigProxy, "sig-proxy", true, "Proxy all received signals to the process")
	return cmd
}

func (a *app) attach(ctx context.Context, s session, stdin bool) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerInspect(ctx, s.id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	c := res.Container
	switch {
	case !c.State.Running:
		return errors.New("You cannot attach to a stopped container, start it first")
	case c.State.Paused:
		return errors.New("You cannot attach to a paused container, unpause it first")
	case c.State.Restarting:
		return errors.New("You cannot attach to a restarting container, wait until it is running")
	}
	s.tty = c.Config.Tty
	s.stdin = stdin && c.Config.OpenStdin
	if err := a.checkTerminal(s.tty, s.stdin); err != nil {
		return err
	}
	code, err := a.foreground(ctx, docker, s)
	if err != nil {
		return err
	}
	return exitWith(code)
}
