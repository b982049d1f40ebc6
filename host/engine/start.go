package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/host/network"
	"sampan/proto"
)

// run is one life of a container's first process, and what it holds on the
// host.
type run struct {
	guest   Guest
	release func() // lets the machine stop when idle
	streams *streams
	hub     *hub
	exports []Export
	unuse   func() // of the volumes; nil before they are used
	started time.Time
	ended   chan struct{} // closed when the container's state says so
	// linkEnv are the variables that the container has of its links.
	linkEnv []string
	// unmirror is called at the end of a run in the host's network; else nil.
	unmirror func()
	// signals is held while a signal is sent and told of: its event precedes
	// that of the end.
	signals sync.Mutex
	// freezing is held while the run is being paused or let go on.
	freezing sync.Mutex

	netMu sync.Mutex
	ends  []*endpoint // in the order of the interfaces
	left  bool        // they are given back
	// What is published, while an endpoint of the ends can be reached.
	ports     []*network.Port
	bound     apinet.PortMap
	published []*proto.Published // of these, those on every address
}

// Start starts a container, booting the machine if need be.
func (e *Engine) Start(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	return e.start(ctx, c, true)
}

// start runs a container. Once it has begun, the end of ctx no longer stops it.
func (e *Engine) start(ctx context.Context, c *ctr, byUser bool) error {
	select {
	case c.op <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.op }()

	c.mu.Lock()
	switch {
	case ctx.Err() != nil: // a stop that came together with the end of the back-off
		c.mu.Unlock()
		return ctx.Err()
	case c.removing, c.rec.Removing:
		c.mu.Unlock()
		return conflict("container is marked for removal and cannot be started")
	case c.run != nil && c.rec.State.Status == container.StatePaused:
		c.mu.Unlock()
		return conflict("cannot start a paused container, try unpause instead")
	case c.run != nil:
		c.mu.Unlock()
		return notModified("container %s is already running", c.id)
	}
	if byUser {
		c.stopRestart()
		c.failures, c.rec.RestartCount, c.rec.Stopped = 0, 0, false
	}
	h := c.hub
	c.mu.Unlock()

	err := e.begin(context.WithoutCancel(ctx), c, h)
	if status.Code(err) == codes.DataLoss {
		if err = e.renewMachine(context.WithoutCancel(ctx), err); err == nil {
			err = e.begin(context.WithoutCancel(ctx), c, h)
		}
	}
	if err == nil {
		return nil
	}
	e.startFailed(c, h, err)
	return startError("failed to start container: ", err)
}

// begin does what Start is about; the caller holds op.
func (e *Engine) begin(ctx context.Context, c *ctr, h *hub) (err error) {
	r := &run{hub: h, ended: make(chan struct{}), release: e.machine.Hold()}
	defer func() {
		if err != nil {
			e.free(r)
		}
	}()
	if r.guest, err = e.boot(ctx, c); err != nil {
		return err
	}
	c.mu.Lock()
	rec := c.rec // its parts are not modified once created
	c.mu.Unlock()
	req, err := e.startRequest(ctx, &rec, r)
	if err != nil {
		return err
	}
	var log *logWriter
	if rec.HostConfig.LogConfig.Type != "none" {
		rot, err := parseRotation(rec.HostConfig.LogConfig)
		if err != nil {
			return err
		}
		attrs, err := logAttrs(&rec)
		if err != nil {
			return err
		}
		if log, err = openLog(e.logPath(c.id), rot, e.log); err != nil {
			return err
		}
		log.attrs = attrs
	}
	// From here on the guest may hold a writable layer.
	c.mu.Lock()
	c.rec.Started, c.rec.Networks = true, rec.Networks
	c.mu.Unlock()
	var pid int32
	r.streams, err = openStreams(ctx, r.guest, c.id, "", req.Streams, func(ctx context.Context) error {
		resp, err := r.guest.Start(ctx, req)
		pid = resp.GetPid()
		return err
	})
	if err != nil {
		if log != nil {
			log.close()
		}
		return err
	}
	if rec.HostConfig.NetworkMode.IsHost() && !e.cfg.NoMirror {
		r.unmirror = e.mirrorPorts(r.guest)
	}
	r.started = time.Now().UTC()
	c.mu.Lock()
	c.run, c.log = r, log
	s := &c.rec.State
	s.Status, s.Pid, s.ExitCode, s.OOMKilled, s.Error = container.StateRunning, int(pid), 0, false, ""
	s.StartedAt, s.FinishedAt = r.started, time.Time{}
	s.Health = startHealth(c.rec.Config, s.Health)
	checked := s.Health != nil
	e.trySave(c)
	c.mu.Unlock()
	for _, ep := range r.endpoints() {
		e.emitNetwork(&ep.net.networkRecord, events.ActionConnect, map[string]string{"container": c.id})
	}
	e.relink(c.id, c.view())
	e.emitMounts(c)
	e.emitContainer(c, events.ActionStart, nil)
	e.wg.Go(func() { e.supervise(c, r, log) })
	if checked {
		e.wg.Go(func() { e.watchHealth(c, r) })
	}
	return nil
}

// boot is session for a container that is to start. A boot takes seconds: it
// can be called off by who wants the container stopped, killed or removed.
func (e *Engine) boot(ctx context.Context, c *ctr) (Guest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.callOff = cancel
	c.mu.Unlock()
	g, err := e.session(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callOff = nil
	if ctx.Err() != nil {
		return nil, conflict("container %s was stopped before it had started", c.id)
	}
	if err != nil {
		return nil, fmt.Errorf("the virtual machine does not run: %w", err)
	}
	return g, nil
}

// startRequest makes the request for the guest, and takes what it needs on the
// host into r.
func (e *Engine) startRequest(ctx context.Context, rec *record, r *run) (*proto.StartRequest, error) {
	r.unuse = e.useVolumes(rec.Mounts)
	mounts, exports, err := e.ociMounts(rec.Mounts)
	r.exports = exports
	if err != nil {
		return nil, err
	}
	in := specInput{ID: rec.ID, Arch: e.cfg.Arch, Config: rec.Config, Host: rec.HostConfig, Args: rec.Args, Mounts: mounts}
	owner, ends := rec, []*endpoint(nil)
	if rec.HostConfig.NetworkMode.IsContainer() {
		if owner, ends, err = e.sharedNetwork(rec); err != nil {
			return nil, &networkError{err}
		}
		cfg := *rec.Config
		cfg.Hostname, cfg.Domainname = owner.Config.Hostname, owner.Config.Domainname
		in.Config, in.SharedNetwork = &cfg, owner.ID
	}
	links, err := e.links(rec)
	if err != nil {
		return nil, err
	}
	for i := range links {
		r.linkEnv = append(r.linkEnv, links[i].variables(rec.Name)...)
	}
	in.Config = withVariables(in.Config, r.linkEnv)
	if err := e.joinOwners(&in); err != nil {
		return nil, err
	}
	spec, err := makeSpec(in)
	if err != nil {
		return nil, err
	}
	req := &proto.StartRequest{
		Id: rec.ID, Layers: rec.Layers,
		Streams: &proto.Streams{Tty: rec.Config.Tty, Stdin: rec.Config.OpenStdin, Stdout: true, Stderr: true},
		// As with Docker: in another pid namespace an init would have nothing to do.
		Init: rec.HostConfig.Init != nil && *rec.HostConfig.Init && rec.HostConfig.PidMode.IsPrivate(),

		Ephemeral: rec.HostConfig.AutoRemove,
	}
	if spec.Process.ConsoleSize != nil {
		req.Size = &proto.TerminalSize{Rows: uint32(spec.Process.ConsoleSize.Height), Columns: uint32(spec.Process.ConsoleSize.Width)}
	}
	if req.Spec, req.Seccomp, err = encodeSpec(spec); err != nil {
		return nil, err
	}
	req.AllDevices = rec.HostConfig.Privileged
	for _, d := range rec.HostConfig.Devices {
		permissions := d.CgroupPermissions
		if permissions == "" {
			permissions = "rwm"
		}
		req.Devices = append(req.Devices, &proto.Device{Path: d.PathOnHost, Target: d.PathInContainer, Permissions: permissions})
	}
	if req.Health, err = healthRequest(rec, r.linkEnv, e.cfg.Arch); err != nil {
		return nil, err
	}
	if !rec.HostConfig.NetworkMode.IsContainer() {
		if err := e.join(rec, r); err != nil {
			return nil, &networkError{err}
		}
		ends = r.endpoints()
		for _, ep := range ends {
			if ep.net.Driver == driverBridge {
				req.Endpoints = append(req.Endpoints, ep.proto())
			}
		}
		req.Resolver = resolver(rec)
	}
	if r.gateway() != nil {
		if err := e.publishPorts(rec, r); err != nil {
			return nil, err
		}
		req.Published = r.everywhere()
	}
	req.Files, err = e.netFiles(owner, ends, links)
	return req, err
}

// encodeSpec encodes a spec, and its filter of system calls apart from it: most
// containers have the same. Without a filter that is nil.
func encodeSpec(spec *specs.Spec) (text, filter []byte, err error) {
	rest, linux := *spec, *spec.Linux
	if linux.Seccomp != nil {
		if filter, err = json.Marshal(linux.Seccomp); err != nil {
			return nil, nil, err
		}
		linux.Seccomp = nil
	}
	rest.Linux = &linux
	text, err = json.Marshal(&rest)
	return text, filter, err
}

// free gives back what a run holds on the host. r.hub is not closed.
func (e *Engine) free(r *run) {
	r.netMu.Lock()
	r.left = true // from here on nothing is added
	r.netMu.Unlock()
	r.closePorts()
	if r.unmirror != nil {
		r.unmirror()
	}
	e.leave(r)
	for _, x := range r.exports {
		if err := x.Close(); err != nil {
			e.log.Warn("end of a share", "name", x.Name(), "error", err)
		}
	}
	if r.unuse != nil {
		r.unuse()
	}
	r.release()
}

// startFailed notes why a container did not start.
func (e *Engine) startFailed(c *ctr, h *hub, err error) {
	c.mu.Lock()
	s := &c.rec.State
	if code := startExitCode(err); code != 128 || s.ExitCode == 0 { // Docker keeps what the last run has left
		s.ExitCode = code
	}
	s.Error = message(err)
	if s.Status == container.StateRestarting {
		s.Status = container.StateExited
	}
	c.hub = newHub(e.tmp(), c.rec.Config.OpenStdin)
	auto := c.rec.HostConfig.AutoRemove
	e.trySave(c)
	c.notify(false)
	c.mu.Unlock()
	h.close()
	if auto {
		e.wg.Go(func() {
			if err := e.Remove(e.ctx, c.id, RemoveOptions{Volumes: true}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				e.log.Error("remove container", "id", c.id, "error", err)
			}
		})
	}
}

// message is an error's text, without what ttrpc and the agent put before it.
func message(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return agentPrefix.ReplaceAllString(s.Message(), "")
	}
	return err.Error()
}

var agentPrefix = regexp.MustCompile(`^container [0-9a-f]{64}: `)

// startExitCode is Docker's: what a shell would say.
func startExitCode(err error) int {
	switch status.Code(err) {
	case codes.NotFound:
		return 127
	case codes.PermissionDenied:
		return 126
	}
	return 128
}

// startError turns the agent's refusals into errors of the caller's class.
// Clients tell 127 and 126 by the words.
func startError(prefix string, err error) error {
	text := message(err)
	if !strings.HasPrefix(text, "unable to find ") { // a user or a group, which Docker says so
		text = prefix + text
	}
	switch status.Code(err) {
	case codes.NotFound, codes.PermissionDenied, codes.FailedPrecondition:
		return errdefs.ErrInvalidArgument.WithMessage(text)
	}
	if isClassed(err) {
		return err
	}
	if _, ok := errors.AsType[*networkError](err); ok {
		return errdefs.ErrInternal.WithMessage(err.Error())
	}
	return fmt.Errorf("%s%w", prefix, err)
}

func isClassed(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) || errdefs.IsConflict(err) ||
		errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) || errdefs.IsInternal(err)
}
