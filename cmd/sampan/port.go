package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newPortCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "port CONTAINER [PRIVATE_PORT[/PROTO]]",
		Short: "List port mappings or a specific mapping for the container",
		Args:  argCount(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			only := ""
			if len(args) == 2 {
				only = args[1]
			}
			return a.port(cmd.Context(), args[0], only)
		},
	}
}

func (a *app) port(ctx context.Context, name, only string) error {
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	res, err := docker.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	var ports network.PortMap
	if s := res.Container.NetworkSettings; s != nil {
		ports = s.Ports
	}
	if only != "" {
		p, err := network.ParsePort(only)
		if err != nil {
			return err
		}
		if len(ports[p]) == 0 {
			return fmt.Errorf("Error: No public port '%s' published for %s", only, name)
		}
		for _, b := range ports[p] {
			fmt.Fprintln(a.out, hostAddress(b))
		}
		return nil
	}
	for _, p := range slices.SortedFunc(maps.Keys(ports), func(a, b network.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return strings.Compare(string(a.Proto()), string(b.Proto()))
	}) {
		for _, b := range ports[p] {
			fmt.Fprintf(a.out, "%s -> %s\n", p, hostAddress(b))
		}
	}
	return nil
}

func hostAddress(b network.PortBinding) string {
	ip := "0.0.0.0"
	if b.HostIP.IsValid() {
		ip = b.HostIP.String()
	}
	return net.JoinHostPort(ip, b.HostPort)
}
