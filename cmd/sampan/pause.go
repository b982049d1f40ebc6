package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newPauseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pause CONTAINER [CONTAINER...]",
		Short: "Pause all processes within one or more containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerPause(cmd.Context(), name, client.ContainerPauseOptions{})
				return name, err
			})
		},
	}
}

func newUnpauseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unpause CONTAINER [CONTAINER...]",
		Short: "Unpause all processes within one or more containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.ContainerUnpause(cmd.Context(), name, client.ContainerUnpauseOptions{})
				return name, err
			})
		},
	}
}

func newRenameCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rename CONTAINER NEW_NAME",
		Short: "Rename a container",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(args[0]) == "" || strings.TrimSpace(args[1]) == "" {
				return errors.New("Error: Neither old nor new names may be empty") //nolint:staticcheck // Docker's words
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := docker.ContainerRename(cmd.Context(), args[0], client.ContainerRenameOptions{NewName: args[1]}); err != nil {
				return fmt.Errorf("%s\nError: failed to rename container named %s", plainText(err), args[0])
			}
			return nil
		},
	}
}

func newTopCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top CONTAINER [ps OPTIONS]",
		Short: "Display the running processes of a container",
		Args:  argCount(1, -1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.top(cmd.Context(), args[0], args[1:]) },
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (a *app) top(ctx context.Context, name string, args []string) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	list, err := docker.ContainerTop(ctx, name, client.ContainerTopOptions{Arguments: args})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 20, 1, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(list.Titles, "\t"))
	for _, p := range list.Processes {
		fmt.Fprintln(w, strings.Join(p, "\t"))
	}
	return w.Flush()
}

func newUpdateCommand(a *app) *cobra.Command {
	var (
		u                         container.UpdateConfig
		memory, swap, reservation bytesValue
		cpus                      cpusValue
		restart                   string
		pids                      int64
	)
	cmd := &cobra.Command{
		Use:   "update [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Update configuration of one or more containers",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return fmt.Errorf("you must provide one or more flags when using this command")
			}
			if restart != "" {
				var err error
				if u.RestartPolicy, err = parseRestart(restart); err != nil {
					return err
				}
			}
			u.Memory, u.MemorySwap, u.MemoryReservation, u.NanoCPUs = int64(memory), int64(swap), int64(reservation), int64(cpus)
			if cmd.Flags().Changed("pids-limit") {
				u.PidsLimit = &pids
			}
			return a.update(cmd.Context(), args, u)
		},
	}
	fs := cmd.Flags()
	fs.Uint16Var(&u.BlkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	fs.Int64Var(&u.CPUPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&u.CPUQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.Int64VarP(&u.CPUShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Var(&cpus, "cpus", "Number of CPUs")
	fs.StringVar(&u.CpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.StringVar(&u.CpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fs.VarP(&memory, "memory", "m", "Memory limit")
	fs.Var(&reservation, "memory-reservation", "Memory soft limit")
	fs.Var(&swap, "memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	fs.Int64Var(&pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fs.StringVar(&restart, "restart", "", "Restart policy to apply when a container exits")
	refuseFlags(fs, refusedUpdateFlags)
	return cmd
}

func (a *app) update(ctx context.Context, names []string, u container.UpdateConfig) error {
	var (
		mu       sync.Mutex // of warnings
		warnings []string
	)
	err := a.each(ctx, names, func(docker *client.Client, name string) (string, error) {
		res, err := docker.ContainerUpdate(ctx, name, client.ContainerUpdateOptions{Resources: &u.Resources, RestartPolicy: &u.RestartPolicy})
		mu.Lock()
		defer mu.Unlock()
		warnings = append(warnings, res.Warnings...)
		return name, err
	})
	for _, w := range warnings {
		fmt.Fprintln(a.out, w) // behind the names, as docker does
	}
	return err
}
