package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// atOnce is how many containers a command works on side by side, as Docker's
// client does (parallelOperation in docker/cli).
const atOnce = 50

// each calls do for every name, side by side, prints the names for which it
// went well in their order, and returns the other ones' errors together.
func (a *app) each(ctx context.Context, names []string, do func(*client.Client, string) (string, error)) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	type result struct {
		text string
		err  error
	}
	results := make([]chan result, len(names))
	slots := make(chan struct{}, atOnce)
	for i, name := range names {
		results[i] = make(chan result, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			text, err := do(docker, name)
			results[i] <- result{text, err}
		}()
	}
	var errs []error
	for _, c := range results {
		r := <-c
		if r.err != nil {
			errs = append(errs, r.err)
		} else if r.text != "" {
			fmt.Fprintln(a.out, r.text)
		}
	}
	return joinErrors(errs)
}

func newStopCommand(a *app) *cobra.Command {
	var (
		signal  string
		timeout int
	)
	cmd := &cobra.Command{
		Use:   "stop [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Stop one or more running containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := client.ContainerStopOptions{Signal: signal, Timeout: changedInt(cmd, &timeout)}
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerStop(cmd.Context(), name, opts)
				return name, err
			})
		},
	}
	stopFlags(cmd, &signal, &timeout)
	return cmd
}

func newRestartCommand(a *app) *cobra.Command {
	var (
		signal  string
		timeout int
	)
	cmd := &cobra.Command{
		Use:   "restart [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Restart one or more containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := client.ContainerRestartOptions{Signal: signal, Timeout: changedInt(cmd, &timeout)}
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerRestart(cmd.Context(), name, opts)
				return name, err
			})
		},
	}
	stopFlags(cmd, &signal, &timeout)
	return cmd
}

func stopFlags(cmd *cobra.Command, signal *string, timeout *int) {
	cmd.Flags().StringVarP(signal, "signal", "s", "", "Signal to send to the container")
	cmd.Flags().IntVarP(timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
	// --time is the old name.
	cmd.Flags().IntVar(timeout, "time", 0, "Seconds to wait before killing the container")
	cmd.Flags().Lookup("time").Hidden = true
}

// changedInt is nil unless the user has given a timeout.
func changedInt(cmd *cobra.Command, timeout *int) *int {
	if cmd.Flags().Changed("timeout") || cmd.Flags().Changed("time") {
		return timeout
	}
	return nil
}

func newKillCommand(a *app) *cobra.Command {
	var opts client.ContainerKillOptions
	cmd := &cobra.Command{
		Use:   "kill [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Kill one or more running containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerKill(cmd.Context(), name, opts)
				return name, err
			})
		},
	}
	cmd.Flags().StringVarP(&opts.Signal, "signal", "s", "", "Signal to send to the container")
	return cmd
}

func newRmCommand(a *app) *cobra.Command {
	var opts client.ContainerRemoveOptions
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Aliases: []string{"remove"},
		Short:   "Remove one or more containers",
		Args:    argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerRemove(cmd.Context(), name, opts)
				if opts.Force && errdefs.IsNotFound(err) {
					fmt.Fprintln(a.err, err) // as wished: it is not there
					return "", nil
				}
				return name, err
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.Force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	cmd.Flags().BoolVarP(&opts.RemoveLinks, "link", "l", false, "Remove the specified link")
	cmd.Flags().BoolVarP(&opts.RemoveVolumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	return cmd
}

func newWaitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "wait CONTAINER [CONTAINER...]",
		Short: "Block until one or more containers stop, then print their exit codes",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				res := docker.ContainerWait(cmd.Context(), name, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
				select {
				case r := <-res.Result:
					return fmt.Sprint(r.StatusCode), nil
				case err := <-res.Error:
					return "", err
				}
			})
		},
	}
}
