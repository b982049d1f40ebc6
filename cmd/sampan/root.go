package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// newRootCommand makes the whole tree of commands.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "sampan [OPTIONS] COMMAND",
		Short:         "Containers in a lightweight virtual machine",
		SilenceErrors: true,
		SilenceUsage:  true,

		DisableFlagsInUseLine: true,

		Version: a.build,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if err := refusal(args[0]); err != nil {
				return err
			}
			return fmt.Errorf("sampan: unknown command: sampan %s\n\nRun 'sampan --help' for more information", args[0])
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("Sampan version {{.Version}}\n")
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpTemplate("{{.UsageString}}")
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	root.SetHelpCommand(&cobra.Command{
		Use: "help [COMMAND]", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("sampan: unknown help topic: %s", strings.Join(args, " "))
			}
			return about.Help()
		},
	})

	root.AddGroup(
		&cobra.Group{ID: "common", Title: "Common Commands:"},
		&cobra.Group{ID: "manage", Title: "Management Commands:"},
		&cobra.Group{ID: "other", Title: "Commands:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			c.DisableFlagsInUseLine = true
		}
		root.AddCommand(cmds...)
	}
	add("common", newRunCommand(a), newExecCommand(a), newPsCommand(a), newPullCommand(a),
		newPushCommand(a), newImagesCommand(a), newLoginCommand(a), newLogoutCommand(a), newVersionCommand(a), newInfoCommand(a))
	add("manage", newContainerCommand(a), newImageCommand(a), newMachineCommand(a), newNetworkCommand(a), newSystemCommand(a), newVolumeCommand(a))
	add("other", newAttachCommand(a), newCommitCommand(a), newCpCommand(a), newCreateCommand(a), newDiffCommand(a), newEventsCommand(a),
		newExportCommand(a), newHistoryCommand(a), newImportCommand(a), newInspectCommand(a), newKillCommand(a), newLoadCommand(a),
		newLogsCommand(a), newPauseCommand(a), newPortCommand(a), newRenameCommand(a), newRestartCommand(a), newRmCommand(a),
		newRmiCommand(a), newSaveCommand(a), newStartCommand(a), newStatsCommand(a), newStopCommand(a),
		newTagCommand(a), newTopCommand(a), newUnpauseCommand(a), newUpdateCommand(a), newWaitCommand(a))
	return root
}

// flagError is Docker's text and code for a wrong flag.
func flagError(cmd *cobra.Command, err error) error {
	return &exitError{code: exitDaemon, text: fmt.Sprintf("%s\n\nUsage:  %s\n\nRun '%s --help' for more information",
		err, cmd.UseLine(), cmd.CommandPath())}
}

// argCount wants between least and most arguments; most < 0: any number.
func argCount(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		n := len(args)
		if n >= least && (most < 0 || n <= most) {
			return nil
		}
		var want string
		switch {
		case most == 0:
			want = "accepts no arguments"
		case least == most:
			want = fmt.Sprintf("requires %d argument%s", least, plural(least))
		case most < 0:
			want = fmt.Sprintf("requires at least %d argument%s", least, plural(least))
		case least == 0:
			want = fmt.Sprintf("requires at most %d argument%s", most, plural(most))
		default:
			want = fmt.Sprintf("requires at least %d and at most %d arguments", least, most)
		}
		return fmt.Errorf("%s: '%s' %s\n\nUsage:  %s\n\nRun '%s --help' for more information",
			cmd.Root().Name(), cmd.CommandPath(), want, cmd.UseLine(), cmd.CommandPath())
	}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// group is a command that only holds others.
func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " COMMAND", Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return fmt.Errorf("%s: unknown command: %s %s\n\nUsage:  %s\n\nRun '%s --help' for more information",
				cmd.Root().Name(), cmd.CommandPath(), args[0], cmd.UseLine(), cmd.CommandPath())
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(cmd.ErrOrStderr()) // nothing was done
			return cmd.Help()
		},
	}
	for _, c := range cmds {
		c.DisableFlagsInUseLine = true
	}
	cmd.AddCommand(cmds...)
	return cmd
}

// usageTemplate has Docker's form.
var usageTemplate = strings.TrimPrefix(`
Usage:  {{.UseLine}}

{{.Short}}
{{- if gt (len .Aliases) 0}}

Aliases:
  {{.NameAndAliases}}
{{- end}}
{{- if .HasAvailableSubCommands}}{{$cmds := .Commands}}
{{- if .Groups}}{{range $g := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $g.ID) .IsAvailableCommand}}
  {{rpad .Name 11}} {{.Short}}{{end}}{{end}}{{end}}
{{- else}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name 11}} {{.Short}}{{end}}{{end}}
{{- end}}{{end}}
{{- if .HasAvailableLocalFlags}}

Options:
{{.LocalFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableSubCommands}}

Run '{{.CommandPath}} COMMAND --help' for more information on a command.
{{- end}}
`, "\n")
