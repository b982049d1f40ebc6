package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRunCommand(a *app) *cobra.Command {
	var (
		f          createFlags
		detach     bool
		sigProxy   bool
		detachKeys string
	)
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create and run a new container from an image",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if detach && len(f.limits.attach) > 0 {
				return errors.New("conflicting options: cannot specify both --attach and --detach")
			}
			return runError(cmd, func() error {
				var err error
				if f.env, err = a.proxies(f.env); err != nil {
					return err
				}
				req, err := f.request(args, os.LookupEnv)
				if err != nil {
					return err
				}
				if detach {
					return a.runDetached(cmd.Context(), &f, req)
				}
				return a.runForeground(cmd.Context(), &f, req, session{
					tty: f.tty, stdin: req.Config.AttachStdin, mute: [2]bool{!req.Config.AttachStdout, !req.Config.AttachStderr}, detachKeys: detachKeys, sigProxy: sigProxy,
					autoRemove: f.remove, start: true,
				})
			}())
		},
	}
	fs := cmd.Flags()
	f.register(fs)
	fs.BoolVarP(&detach, "detach", "d", false, "Run container in background and print container ID")
	fs.BoolVar(&sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	fs.StringVar(&detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	return cmd
}

func (a *app) runDetached(ctx context.Context, f *createFlags, req client.ContainerCreateOptions) error {
	cfg := req.Config
	cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr, cfg.StdinOnce = false, false, false, false
	id, err := a.createContainer(ctx, f, req)
	if err != nil {
		return startFailed(err) // its words make the exit code, as with docker
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	err = a.start(ctx, docker, id)
	fmt.Fprintln(a.out, id) // it is there even if it did not start
	return startFailed(err)
}

func (a *app) runForeground(ctx context.Context, f *createFlags, req client.ContainerCreateOptions, s session) error {
	if err := a.checkTerminal(f.tty, f.interactive); err != nil {
		return err
	}
	if f.tty {
		size := a.terminalSize()
		req.HostConfig.ConsoleSize = [2]uint{size.Height, size.Width}
	}
	id, err := a.createContainer(ctx, f, req)
	if err != nil {
		return startFailed(err) // its words make the exit code, as with docker
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	s.id = id
	if s.mute[0] && s.mute[1] {
		fmt.Fprintln(a.out, id) // all that is shown of it
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
