package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"sampan/host/machine"
)

// Inspect describes a container.
func (e *Engine) Inspect(ctx context.Context, name string, size bool) (container.InspectResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return container.InspectResponse{}, err
	}
	v := c.view()
	r := &v.rec
	resp := container.InspectResponse{
		ID: r.ID, Created: r.Created.Format(time.RFC3339Nano), Args: []string{},
		State: r.State.inspect(), Image: r.ImageID, Name: "/" + r.Name, RestartCount: r.RestartCount,
		LogPath: e.logPath(r.ID), Driver: "overlay2", Platform: "linux",
		ExecIDs: e.execsOf(c), HostConfig: r.HostConfig, Config: r.Config, Mounts: v.mounts(),
		GraphDriver: &storage.DriverData{Name: "overlay2", Data: map[string]string{}},
		NetworkSettings: &container.NetworkSettings{
			Ports: v.bound, Networks: v.networks(),
		},
	}
	if len(r.Links) > 0 {
		h := *r.HostConfig
		h.Links = e.shownLinks(r)
		resp.HostConfig = &h
	}
	if len(r.Args) > 0 {
		resp.Path = r.Args[0]
		resp.Args = append(resp.Args, r.Args[1:]...)
	}
	if r.HostConfig.LogConfig.Type == "none" {
		resp.LogPath = ""
	}
	if v.bound == nil {
		resp.NetworkSettings.Ports = apinet.PortMap{}
	}
	if size {
		rw, root, err := e.sizes(ctx, r, true)
		if err != nil {
			return container.InspectResponse{}, err
		}
		resp.SizeRw, resp.SizeRootFs = &rw, &root
	}
	if len(v.ends) > 0 {
		resp.NetworkSettings.SandboxID = endpointID(r.ID, "sandbox")
	}
	return resp, nil
}

// execsOf lists the IDs of a container's execs; nil when there are none, as
// Docker has it.
func (e *Engine) execsOf(c *ctr) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []string
	for id, x := range e.execs {
		if x.ctr == c {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *state) inspect() *container.State {
	return &container.State{
		Status:     s.Status,
		Running:    s.Status == container.StateRunning || s.Status == container.StatePaused || s.Status == container.StateRestarting,
		Paused:     s.Status == container.StatePaused,
		Restarting: s.Status == container.StateRestarting,
		OOMKilled:  s.OOMKilled, Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error, Health: s.Health,
		StartedAt: s.StartedAt.Format(time.RFC3339Nano), FinishedAt: s.FinishedAt.Format(time.RFC3339Nano),
	}
}

// MachineStatus tells the machine's state without booting it, and what doesn't
// work at present.
func (e *Engine) MachineStatus(ctx context.Context) machine.Status {
	s := e.machine.Status(ctx)
	if e.cfg.Events != nil {
		events := e.cfg.Events()
		s.Events = &events
	}
	if e.cfg.Warnings != nil {
		s.Warnings = append(s.Warnings, e.cfg.Warnings()...)
	}
	s.Warnings = append(s.Warnings, e.mirror.warnings()...)
	s.Warnings = append(s.Warnings, e.spaceWarnings()...)
	for _, f := range e.ports.Failing() {
		s.Warnings = append(s.Warnings, fmt.Sprintf("port %s/%s of %s does not work since %s: %v",
			f.Addr, f.Proto, e.describe(f.Owner), f.Since.Format(time.TimeOnly), f.Err))
	}
	return s
}

// MachineUsage tells what the machine uses as its host sees it, without booting
// it.
func (e *Engine) MachineUsage() machine.Usage { return e.machine.Usage() }

// ConsoleLog is the path of the guest's console log.
func (e *Engine) ConsoleLog() string { return e.machine.ConsoleLog() }
