package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

// The virtual machine has endpoints of its own beside the Docker Engine API:
//
//	GET  /sampan/machine          machineStatus
//	GET  /sampan/machine/usage    machineUsage
//	POST /sampan/machine/start    boots it, if it does not run
//	POST /sampan/machine/stop     turns it off in order
//	GET  /sampan/machine/logs     what its console printed; ?follow=1 goes on
//	POST /sampan/machine/check    verifies and repairs the image store
//	POST /sampan/machine/exec     as /containers/ID/exec, for the guest itself
func newMachineCommand(a *app) *cobra.Command {
	return group("machine", "Manage the virtual machine",
		newMachineCheckCommand(a), newMachineLogsCommand(a), newMachineSetCommand(a), newMachineShellCommand(a), newMachineStartCommand(a),
		newMachineStatusCommand(a), newMachineStopCommand(a))
}

// machineCall calls one of the machine's endpoints. The caller closes the body.
func (a *app) machineCall(ctx context.Context, start bool, method, path string, body any) (*http.Response, error) {
	if body == nil {
		return a.ownCall(ctx, start, method, "/machine"+path, "", nil)
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return a.ownCall(ctx, start, method, "/machine"+path, "application/json", bytes.NewReader(text))
}

// ownCall calls an endpoint that Docker doesn't have. The caller closes the body.
func (a *app) ownCall(ctx context.Context, start bool, method, path, kind string, in io.Reader) (*http.Response, error) {
	c, err := a.connect(ctx, start)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sampan/sampan"+path, in)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.plain.Do(req)
	if err != nil {
		return nil, &daemonError{"sampand does not answer: " + err.Error()}
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, responseError(resp)
	}
	return resp, nil
}

// machineDo is machineCall for calls without an answer.
func (a *app) machineDo(ctx context.Context, start bool, method, path string) error {
	resp, err := a.machineCall(ctx, start, method, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func newMachineStartCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "start",
		Short: "Start the virtual machine, if it does not run",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.connect(cmd.Context(), true); err != nil {
				return err
			}
			defer a.noticeBoot(cmd.Context())()
			return a.machineDo(cmd.Context(), true, http.MethodPost, "/start")
		},
	}
}

func newMachineStopCommand(a *app) *cobra.Command {
	var daemon bool
	cmd := &cobra.Command{
		Use:   "stop [OPTIONS]",
		Short: "Stop the virtual machine and the containers in it",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.machineDo(cmd.Context(), false, http.MethodPost, "/stop")
			if errors.Is(err, errNoDaemon) {
				return nil // nor does the machine
			}
			if err != nil || !daemon {
				return err
			}
			return a.endDaemon(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&daemon, "daemon", false, "End sampand as well; the next command starts it again")
	return cmd
}

func newMachineSetCommand(a *app) *cobra.Command {
	var disk string
	cmd := &cobra.Command{
		Use:   "set OPTIONS",
		Short: "Change the virtual machine",
		Long:  "Change the virtual machine.\n\nA data disk can only grow. It does so at the machine's next boot.",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if disk == "" {
				return errors.New("nothing to set: want --disk SIZE")
			}
			size, err := units.RAMInBytes(disk)
			if err != nil || size <= 0 {
				return fmt.Errorf("invalid argument %q for --disk: want a size such as 128GiB", disk)
			}
			resp, err := a.machineCall(cmd.Context(), true, http.MethodPost, "/disk", map[string]int64{"size": size})
			if err != nil {
				return err
			}
			return resp.Body.Close()
		},
	}
	cmd.Flags().StringVar(&disk, "disk", "", "Size of the data disk, such as 128GiB")
	return cmd
}

func newMachineStatusCommand(a *app) *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use:   "status [OPTIONS]",
		Short: "Show the virtual machine's state",
		Args:  argCount(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.machineStatus(cmd.Context(), raw) },
	}
	cmd.Flags().BoolVar(&raw, "json", false, "Print in JSON format")
	return cmd
}

// machineStatus is the daemon's account of the machine.
type machineStatus struct {
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Driver   string    `json:"driver"`
	Pid      int       `json:"pid"`
	Kernel   string    `json:"kernel"`
	CPUs     int       `json:"cpus"`
	Memory   int64     `json:"memory"` // bytes
	DataDisk string    `json:"dataDisk"`
	DiskSize int64     `json:"diskSize"` // bytes
	DiskDone string    `json:"diskDone"`
	Boot     []struct {
		Name string        `json:"name"`
		At   time.Duration `json:"at"`
	} `json:"boot"`
	LastError string   `json:"lastError"`
	Warnings  []string `json:"warnings"`
	Events    *struct {
		Watched, Unwatched, Replayed, Degraded, Lost, Overflows int64
	} `json:"events"`
	Guest *struct {
		MemoryTotal     uint64 `json:"memory_total"`
		MemoryAvailable uint64 `json:"memory_available"`
		DiskTotal       uint64 `json:"disk_total"`
		DiskFree        uint64 `json:"disk_free"`
	} `json:"guest"`
}

func (a *app) machineStatus(ctx context.Context, raw bool) error {
	text := []byte(`{"state":"stopped"}`)
	resp, err := a.machineCall(ctx, false, http.MethodGet, "", nil)
	switch {
	case errors.Is(err, errNoDaemon):
		// Without a daemon there is no machine, and nobody is started to say so.
	case err != nil:
		return err
	default:
		defer resp.Body.Close()
		if text, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
	}
	if raw {
		var b bytes.Buffer
		if err := json.Indent(&b, bytes.TrimSpace(text), "", "    "); err != nil {
			return err
		}
		fmt.Fprintln(a.out, b.String())
		return nil
	}
	var s machineStatus
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("machine status: %w", err)
	}
	s.print(a.out)
	return nil
}

func (s *machineStatus) print(w io.Writer) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-12s%s\n", name+":", value)
		}
	}
	state := s.State
	if !s.Since.IsZero() {
		state += " for " + strings.ToLower(units.HumanDuration(time.Since(s.Since)))
	}
	line("State", state)
	line("Driver", s.Driver)
	if s.Pid != 0 {
		line("Process", fmt.Sprint(s.Pid))
	}
	line("Kernel", s.Kernel)
	if s.CPUs > 0 {
		line("CPUs", fmt.Sprint(s.CPUs))
	}
	if s.Memory > 0 {
		memory := units.BytesSize(float64(s.Memory))
		if g := s.Guest; g != nil && g.MemoryTotal > 0 {
			memory += ", " + units.BytesSize(float64(g.MemoryTotal-min(g.MemoryAvailable, g.MemoryTotal))) + " used"
		}
		line("Memory", memory)
	}
	if s.DataDisk != "" {
		disk := s.DataDisk
		if s.DiskSize > 0 {
			disk += ", " + units.BytesSize(float64(s.DiskSize))
		}
		if g := s.Guest; g != nil && g.DiskTotal > 0 {
			disk += ", " + units.BytesSize(float64(g.DiskTotal-min(g.DiskFree, g.DiskTotal))) + " used"
		}
		if s.DiskDone != "" {
			disk += " (" + s.DiskDone + ")"
		}
		line("Data disk", disk)
	}
	if e := s.Events; e != nil && (e.Watched > 0 || e.Replayed > 0 || e.Unwatched > 0 || e.Lost > 0) {
		events := fmt.Sprintf("%d told, %d lost; %d folders watched", e.Replayed, e.Lost, e.Watched)
		for _, more := range []struct {
			n    int64
			what string
		}{{e.Degraded, "degraded"}, {e.Overflows, "overflows"}, {e.Unwatched, "folders not watched"}} {
			if more.n > 0 {
				events += fmt.Sprintf(", %d %s", more.n, more.what)
			}
		}
		line("Events", events)
	}
	first, _, _ := strings.Cut(s.LastError, "\n") // the console's tail follows, which machine logs shows
	line("Last error", first)
	for _, w := range s.Warnings {
		line("Warning", w)
	}
	if len(s.Boot) == 0 {
		return
	}
	// When each stage was reached, and how long after the one before.
	fmt.Fprintln(w, "Boot:")
	last := time.Duration(0)
	for _, b := range s.Boot {
		fmt.Fprintf(w, "  %-12s%8s  +%s\n", b.Name, b.At.Round(time.Millisecond), (b.At - last).Round(time.Millisecond))
		last = b.At
	}
}

func newMachineLogsCommand(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs [OPTIONS]",
		Short: "Show what the virtual machine's console printed",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/logs"
			if follow {
				path += "?follow=1"
			}
			resp, err := a.machineCall(cmd.Context(), true, http.MethodGet, path, nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(a.out, resp.Body)
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "Follow log output")
	return cmd
}

func newMachineShellCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shell [COMMAND] [ARG...]",
		Short: "Run a shell, or a command, in the virtual machine itself",
		Args:  argCount(0, -1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.machineShell(cmd.Context(), args) },
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// machineShell is an exec whose container is the guest. It has a terminal when
// our stdin and stdout are one.
func (a *app) machineShell(ctx context.Context, command []string) error {
	if len(command) == 0 {
		command = []string{"/bin/busybox", "sh"}
	} else {
		// The shell looks for it in PATH, and knows busybox's own.
		command = append([]string{"/bin/busybox", "sh", "-c", `exec "$@"`, "sh"}, command...)
	}
	_, in := term.GetFdInfo(a.in)
	_, out := term.GetFdInfo(a.out)
	opts := client.ExecCreateOptions{TTY: in && out, AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: command}
	req := container.ExecCreateRequest{
		Tty: opts.TTY, AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: command,
		Env: []string{"PATH=/bin:/sbin", "HOME=/root", "PS1=sampan:\\w# "},
	}
	if opts.TTY {
		opts.ConsoleSize = a.terminalSize()
		req.Env = append(req.Env, "TERM=xterm")
	}
	resp, err := a.machineCall(ctx, true, http.MethodPost, "/exec", req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var created container.ExecCreateResponse
	if err := json.NewDecoder(resp.Body).Decode(&created); err != nil {
		return fmt.Errorf("machine shell: %w", err)
	}
	docker, err := a.docker(ctx)
	if err != nil {
		return err
	}
	return a.execForeground(ctx, docker, created.ID, opts)
}
