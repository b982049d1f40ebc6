package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newNetworkCommand(a *app) *cobra.Command {
	return group("network", "Manage networks",
		newNetworkConnectCommand(a), newNetworkCreateCommand(a), newNetworkDisconnectCommand(a), newNetworkInspectCommand(a),
		newNetworkListCommand(a), newNetworkPruneCommand(a), newNetworkRemoveCommand(a))
}

func newNetworkConnectCommand(a *app) *cobra.Command {
	var (
		ep                    network.EndpointSettings
		aliases, links        []string
		ip, ip6               string
		linkLocal, driverOpts []string
	)
	cmd := &cobra.Command{
		Use:   "connect [OPTIONS] NETWORK CONTAINER",
		Short: "Connect a container to a network",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ep.Aliases, ep.Links = aliases, links
			for family, value := range map[string]string{"ip": ip, "ip6": ip6} {
				if value != "" {
					if err := setAddress(&ep, family, value); err != nil {
						return err
					}
				}
			}
			for _, s := range linkLocal {
				addr, err := netip.ParseAddr(s)
				if err != nil {
					return fmt.Errorf("invalid link-local address: %s", s)
				}
				ipam(&ep).LinkLocalIPs = append(ipam(&ep).LinkLocalIPs, addr)
			}
			if len(driverOpts) > 0 {
				ep.DriverOpts = keyValues(driverOpts)
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			_, err = docker.NetworkConnect(cmd.Context(), args[0], client.NetworkConnectOptions{Container: args[1], EndpointConfig: &ep})
			return err
		},
	}
	fs := cmd.Flags()
	listVar(fs, &aliases, "alias", "", "Add network-scoped alias for the container")
	listVar(fs, &driverOpts, "driver-opt", "", "driver options for the network")
	fs.IntVar(&ep.GwPriority, "gw-priority", 0, "Highest gw-priority provides the default gateway. Accepts positive and negative values")
	fs.StringVar(&ip, "ip", "", "IPv4 address (e.g., \"172.30.100.104\")")
	fs.StringVar(&ip6, "ip6", "", "IPv6 address (e.g., \"2001:db8::33\")")
	listVar(fs, &links, "link", "", "Add link to another container")
	listVar(fs, &linkLocal, "link-local-ip", "", "Add a link-local address for the container")
	return cmd
}

func newNetworkDisconnectCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "disconnect [OPTIONS] NETWORK CONTAINER",
		Short: "Disconnect a container from a network",
		Args:  argCount(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			_, err = docker.NetworkDisconnect(cmd.Context(), args[0], client.NetworkDisconnectOptions{Container: args[1], Force: force})
			return err
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	return cmd
}

// networkCreateFlags are the options of `network create`.
type networkCreateFlags struct {
	opts                                            client.NetworkCreateOptions
	ipam                                            network.IPAM
	subnets, ranges, gateways, aux, labels, options []string
	ipamOptions                                     []string
	ipv4, ipv6                                      bool
}

func newNetworkCreateCommand(a *app) *cobra.Command {
	var f networkCreateFlags
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] NETWORK",
		Short: "Create a network",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(cmd.Flags().Changed); err != nil {
				return err
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.NetworkCreate(cmd.Context(), args[0], f.opts)
			if err != nil {
				return err
			}
			for _, w := range res.Warning {
				fmt.Fprintln(a.err, "WARNING:", w)
			}
			fmt.Fprintln(a.out, res.ID)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.opts.Attachable, "attachable", false, "Enable manual container attachment")
	listVar(fs, &f.aux, "aux-address", "", "Auxiliary IPv4 or IPv6 addresses used by Network driver")
	fs.StringVar(&f.opts.ConfigFrom, "config-from", "", "The network from which to copy the configuration")
	fs.BoolVar(&f.opts.ConfigOnly, "config-only", false, "Create a configuration only network")
	fs.StringVarP(&f.opts.Driver, "driver", "d", "bridge", "Driver to manage the Network")
	listVar(fs, &f.gateways, "gateway", "", "IPv4 or IPv6 Gateway for the master subnet")
	fs.BoolVar(&f.opts.Ingress, "ingress", false, "Create swarm routing-mesh network")
	fs.BoolVar(&f.opts.Internal, "internal", false, "Restrict external access to the network")
	listVar(fs, &f.ranges, "ip-range", "", "Allocate container ip from a sub-range")
	fs.StringVar(&f.ipam.Driver, "ipam-driver", "default", "IP Address Management Driver")
	listVar(fs, &f.ipamOptions, "ipam-opt", "", "Set IPAM driver specific options")
	fs.BoolVar(&f.ipv4, "ipv4", true, "Enable or disable IPv4 address assignment")
	fs.BoolVar(&f.ipv6, "ipv6", false, "Enable or disable IPv6 address assignment")
	listVar(fs, &f.labels, "label", "", "Set metadata on a network")
	listVar(fs, &f.options, "opt", "o", "Set driver specific options")
	fs.StringVar(&f.opts.Scope, "scope", "", "Control the network's scope")
	listVar(fs, &f.subnets, "subnet", "", "Subnet in CIDR format that represents a network segment")
	return cmd
}

// complete makes the request.
func (f *networkCreateFlags) complete(changed func(string) bool) error {
	if changed("ipv4") {
		f.opts.EnableIPv4 = &f.ipv4
	}
	if changed("ipv6") {
		f.opts.EnableIPv6 = &f.ipv6
	}
	f.opts.Labels, f.opts.Options = keyValues(f.labels), keyValues(f.options)
	f.ipam.Options = keyValues(f.ipamOptions)
	var err error
	if f.ipam.Config, err = ipamConfig(f.subnets, f.ranges, f.gateways, f.aux); err != nil {
		return err
	}
	f.opts.IPAM = &f.ipam
	return nil
}

// ipamConfig finds the subnet that each range, gateway and auxiliary address
// belongs to.
func ipamConfig(subnets, ranges, gateways, aux []string) ([]network.IPAMConfig, error) {
	if len(subnets) < len(ranges) || len(subnets) < len(gateways) {
		return nil, errors.New("every ip-range or gateway must have a corresponding subnet")
	}
	list := []network.IPAMConfig{}
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid subnet %s: %w", s, err)
		}
		if slices.ContainsFunc(list, func(c network.IPAMConfig) bool { return c.Subnet.Overlaps(p) }) {
			return nil, errors.New("multiple overlapping subnet configuration is not supported")
		}
		list = append(list, network.IPAMConfig{Subnet: p})
	}
	of := func(a netip.Addr) *network.IPAMConfig {
		for i := range list {
			if list[i].Subnet.Contains(a) {
				return &list[i]
			}
		}
		return nil
	}
	for _, s := range ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid ip-range %s: %w", s, err)
		}
		c := of(p.Addr())
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for range %s", s)
		case c.IPRange.IsValid():
			return nil, fmt.Errorf("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", s, c.IPRange, c.Subnet)
		}
		c.IPRange = p
	}
	for _, s := range gateways {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid gateway %s: %w", s, err)
		}
		c := of(ip)
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for gateway %s", s)
		case c.Gateway.IsValid():
			return nil, fmt.Errorf("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", s, c.Gateway, c.Subnet)
		}
		c.Gateway = ip
	}
	for name, s := range keyValues(aux) {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid auxiliary address %s: %w", s, err)
		}
		c := of(ip)
		if c == nil {
			return nil, fmt.Errorf("no matching subnet for aux-address %s", s)
		}
		if c.AuxAddress == nil {
			c.AuxAddress = map[string]netip.Addr{}
		}
		c.AuxAddress[name] = ip
	}
	return list, nil
}

func newNetworkInspectCommand(a *app) *cobra.Command {
	var (
		format  string
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NETWORK [NETWORK...]",
		Short: "Display detailed information on one or more networks",
		Args:  argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args, format, func(ctx context.Context, docker *client.Client, name string) (inspected, error) {
				res, err := docker.NetworkInspect(ctx, name, client.NetworkInspectOptions{Verbose: verbose})
				return inspected{res.Network, res.Raw}, err
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Format output using a custom template: 'json', or a Go template")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Verbose output for diagnostics")
	return cmd
}

// networkRow has the fields of Docker's templates.
type networkRow struct {
	ID, Name, Driver, Scope, IPv4, IPv6, Internal, Labels, CreatedAt string
	labels                                                           map[string]string
}

// Label is the value of one label.
func (r networkRow) Label(name string) string { return r.labels[name] }

func newNetworkListCommand(a *app) *cobra.Command {
	var (
		conditions     filterFlag
		format         string
		noTrunc, quiet bool
	)
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List networks",
		Args:    argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.NetworkList(cmd.Context(), client.NetworkListOptions{Filters: conditions.Filters})
			if err != nil {
				return err
			}
			slices.SortFunc(res.Items, func(a, b network.Summary) int { return strings.Compare(a.Name, b.Name) })
			var rows []networkRow
			for _, n := range res.Items {
				id := n.ID
				if !noTrunc {
					id = shortID(id)
				}
				rows = append(rows, networkRow{
					ID: id, Name: n.Name, Driver: n.Driver, Scope: n.Scope, CreatedAt: n.Created.Format(time.RFC3339Nano),
					IPv4: strconv.FormatBool(n.EnableIPv4), IPv6: strconv.FormatBool(n.EnableIPv6), Internal: strconv.FormatBool(n.Internal),
					Labels: joinLabels(n.Labels), labels: n.Labels,
				})
			}
			if quiet && format == "" {
				format = "{{.ID}}"
			}
			header := networkRow{ID: "NETWORK ID", Name: "NAME", Driver: "DRIVER", Scope: "SCOPE", IPv4: "IPV4", IPv6: "IPV6",
				Internal: "INTERNAL", Labels: "LABELS", CreatedAt: "CREATED AT"}
			return writeRows(a.out, format, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", header, rows)
		},
	}
	cmd.Flags().VarP(&conditions, "filter", "f", `Provide filter values (e.g. "driver=bridge")`)
	cmd.Flags().StringVar(&format, "format", "", "Format output using a Go template, 'table TEMPLATE' or 'json'")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	return cmd
}

func newNetworkRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NETWORK [NETWORK...]",
		Aliases: []string{"remove"},
		Short:   "Remove one or more networks",
		Args:    argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(docker *client.Client, name string) (string, error) {
				_, err := docker.NetworkRemove(cmd.Context(), name, client.NetworkRemoveOptions{})
				if force && errdefs.IsNotFound(err) {
					err = nil
				}
				return name, err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	return cmd
}

func newNetworkPruneCommand(a *app) *cobra.Command {
	var (
		force      bool
		conditions filterFlag
	)
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove all unused networks",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !a.confirm("WARNING! This will remove all custom networks not used by at least one container.\nAre you sure you want to continue?") {
				return nil
			}
			docker, err := a.docker(cmd.Context())
			if err != nil {
				return err
			}
			res, err := docker.NetworkPrune(cmd.Context(), client.NetworkPruneOptions{Filters: conditions.Filters})
			if err != nil {
				return err
			}
			if len(res.Report.NetworksDeleted) > 0 {
				fmt.Fprintln(a.out, "Deleted Networks:")
				for _, name := range res.Report.NetworksDeleted {
					fmt.Fprintln(a.out, name)
				}
				fmt.Fprintln(a.out)
			}
			return nil
		},
	}
	cmd.Flags().Var(&conditions, "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}
