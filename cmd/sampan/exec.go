package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

func newExecCommand(a *app) *cobra.Command {
	var (
		detach   bool
		opts     client.ExecCreateOptions
		env      []string
		envFiles []string
	)
	cmd := &cobra.Command{
		Use:   "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Short: "Execute a command in a running container",
		Args:  argCount(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if opts.Env, err = environment(envFiles, env, os.LookupEnv); err != nil {
				return err
			}
			opts.Cmd = args[1:]
			return a.exec(cmd.Context(), args[0], opts, detach)
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&detach, "detach", "d", false, "Detached mode: run command in the background")
	fs.StringVar(&opts.DetachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	listVar(fs, &env, "env", "e", "Set environment variables")
	listVar(fs, &envFiles, "env-file", "", "Read in a file of environment variables")
	fs.BoolVarP(&opts.AttachStdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVar(&opts.Privileged, "privileged", false, "Give extended privileges to the command")
	fs.BoolVarP(&opts.TTY, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.StringVarP(&opts.User, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	fs.StringVarP(&opts.WorkingDir, "workdir", "w", "", "Working directory inside the container")
	return cmd
}

func (a *app) exec(ctx context.Context, container string, opts client.ExecCreateOptions, detach bool) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	if !detach {
		if err := a.checkTerminal(opts.TTY, opts.AttachStdin); err != nil {
			return err
		}
		opts.AttachStdout, opts.AttachStderr = true, true
	} else {
		opts.AttachStdin = false
	}
	if opts.TTY {
		opts.ConsoleSize = a.terminalSize()
	}
	created, err := docker.ExecCreate(ctx, container, opts)
	if err != nil {
		return err
	}
	if detach {
		_, err := docker.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true, TTY: opts.TTY})
		return err
	}
	return a.execForeground(ctx, docker, created.ID, opts)
}

// execForeground starts a created exec, connects our streams with it, and
// returns its exit code as an error.
func (a *app) execForeground(ctx context.Context, docker *client.Client, id string, opts client.ExecCreateOptions) error {
	keys, err := detachSequence(opts.DetachKeys)
	if err != nil {
		return err
	}
	conn, err := docker.ExecAttach(ctx, id, client.ExecAttachOptions{TTY: opts.TTY, ConsoleSize: opts.ConsoleSize})
	if err != nil {
		return execError(err)
	}
	defer conn.Close()
	st := stream{conn: conn.HijackedResponse, tty: opts.TTY, out: a.out, err: a.err, detachKeys: keys}
	if opts.AttachStdin {
		st.in = a.in
	}
	if err := a.execStreams(ctx, docker, id, st); err != nil {
		return err
	}
	res, err := docker.ExecInspect(ctx, id, client.ExecInspectOptions{})
	if err != nil {
		return err
	}
	return exitWith(res.ExitCode)
}

// execStreams holds the terminal while the streams are open.
func (a *app) execStreams(ctx context.Context, docker *client.Client, id string, st stream) error {
	if st.tty {
		if st.in != nil {
			restore, err := a.rawTerminal()
			if err != nil {
				return err
			}
			defer restore()
		}
		defer a.watchSize(ctx, func(ctx context.Context, size client.ConsoleSize) error {
			_, err := docker.ExecResize(ctx, id, client.ExecResizeOptions(size))
			return err
		})()
	}
	err := st.copy(ctx)
	if errors.As(err, new(term.EscapeError)) {
		return errDetached
	}
	if err != nil {
		return fmt.Errorf("the command's output: %w", err)
	}
	return nil
}

// execError has the exit code of a command that could not be executed.
func execError(err error) error {
	if err == nil {
		return nil
	}
	if code := startCode(err); code != exitDaemon && !strings.Contains(err.Error(), "No such container") {
		return &exitError{code: code, text: plainText(err)}
	}
	return err
}
