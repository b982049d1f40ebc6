package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

func newEventsCommand(a *app) *cobra.Command {
	var (
		opts       client.EventsListOptions
		conditions filterFlag
		format     string
	)
	cmd := &cobra.Command{
		Use:   "events [OPTIONS]",
		Short: "Get real time events from the server",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Filters = conditions.Filters
			return a.events(cmd.Context(), opts, format)
		},
	}
	fs := cmd.Flags()
	fs.VarP(&conditions, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&format, "format", "", "Format output using a custom template: 'json', or a Go template")
	fs.StringVar(&opts.Since, "since", "", "Show all events created since timestamp")
	fs.StringVar(&opts.Until, "until", "", "Stream events until this timestamp")
	return cmd
}

func (a *app) events(ctx context.Context, opts client.EventsListOptions, format string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := newTemplate(format)
	if err == nil {
		err = execute(io.Discard, t, events.Message{}) // before anything has happened
	}
	if err != nil {
		return &exitError{code: 64, text: fmt.Sprintf("Error parsing format: %s", errors.Unwrap(err))} // as docker has it
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res := docker.Events(ctx, opts)
	for {
		select {
		case m := <-res.Messages:
			if format != "" {
				if err := execute(a.out, t, m); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintln(a.out, eventLine(m))
		case err := <-res.Err:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// eventLine is "TIME TYPE ACTION ID (KEY=VALUE, ...)".
func eventLine(m events.Message) string {
	at := time.Unix(m.Time, 0)
	if m.TimeNano != 0 {
		at = time.Unix(0, m.TimeNano)
	}
	line := fmt.Sprintf("%s %s %s %s", at.Format(jsonmessage.RFC3339NanoFixed), m.Type, m.Action, m.Actor.ID)
	var attrs []string
	for _, k := range slices.Sorted(maps.Keys(m.Actor.Attributes)) {
		attrs = append(attrs, k+"="+m.Actor.Attributes[k])
	}
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	return line
}
