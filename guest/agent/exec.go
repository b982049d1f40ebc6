package agent

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/runtime"
	"sampan/proto"
)

// Exec implements proto.AgentService.
func (s *Service) Exec(ctx context.Context, req *proto.ExecRequest) (*proto.StartResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := checkName("exec", req.Exec); err != nil {
		return nil, err
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(req.Process, spec); err != nil {
		return nil, errorf(codes.InvalidArgument, "process: %v", err)
	}
	if spec.Terminal != req.Streams.GetTty() {
		return nil, errorf(codes.InvalidArgument, "process: terminal %v, but stream tty %v", spec.Terminal, req.Streams.GetTty())
	}
	launch, execs := s.launchInGuest, s.guestExecs
	ended := func() bool { return false }
	if req.Container != "" {
		c, err := s.running(req.Container)
		if err != nil {
			return nil, errorf(codes.Unavailable, "container %s is not running", req.Container)
		}
		launch, execs = c.launch, c.execs
		ended = func() bool { return c.first.running() == nil }
	}
	p, err := execs.add(req.Exec)
	if err != nil {
		return nil, err
	}
	pid, err := s.exec(ctx, launch, req, spec, p, execs)
	if err != nil {
		s.cfg.Streams.forget(req.Container, req.Exec)
		execs.drop(req.Exec)
		p.failed(err)
		if errors.Is(err, runtime.ErrNotRunning) || ended() {
			return nil, errorf(codes.Unavailable, "%v", err)
		}
		return nil, failed("", err)
	}
	go s.prepareNext()
	return &proto.StartResponse{Pid: int32(pid)}, nil
}

// launcher prepares a process. start lets it go; after an error of start, or a
// call of kill instead, it is gone. The stdio gets a copy of its terminal's
// master, if it has one.
type launcher func(context.Context, *specs.Process, *stdio) (h handle, start, kill func() error, err error)

func (s *Service) exec(ctx context.Context, launch launcher, req *proto.ExecRequest, spec *specs.Process, p *process, execs *processes) (pid int, err error) {
	var undo undo
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	streams := s.cfg.Streams.await(ctx, req.Container, req.Exec, streamNames(req.Streams))
	undo.add(streams.close)
	stdio, err := newStdio(req.Streams, req.Size)
	if err != nil {
		return 0, err
	}
	undo.add(stdio.closeOurs)
	h, start, kill, err := launch(ctx, spec, stdio)
	defer stdio.closeChild()
	if err != nil {
		return 0, err
	}
	conns, err := streams.wait()
	if err != nil {
		return 0, errors.Join(err, kill())
	}
	if err := start(); err != nil {
		return 0, err
	}
	stdio.connect(conns)
	p.started(h)
	go func() {
		st, err := h.Wait(context.Background())
		p.ended(st, false, err)
		stdio.closeStdin()
		execs.retire(req.Exec)
		if rp, ok := h.(*runtime.Process); ok {
			closeConsole(rp)
		}
	}()
	return h.Pid(), nil
}

// launch prepares a process in the container.
func (c *container) launch(ctx context.Context, spec *specs.Process, stdio *stdio) (handle, func() error, func() error, error) {
	c.mu.Lock()
	ctr := c.runtime
	c.mu.Unlock()
	p, err := ctr.Exec(ctx, spec, stdio.child)
	if err != nil {
		return nil, nil, nil, err
	}
	if spec.Terminal {
		if err := stdio.terminal(p.Console); err != nil {
			return nil, nil, nil, errors.Join(err, p.Kill())
		}
	}
	return p, p.Start, p.Kill, nil
}

// closeConsole closes the runtime's copy of a terminal's master.
func closeConsole(p *runtime.Process) {
	if p.Console != nil {
		p.Console.Close()
	}
}

// running returns a container that runs.
func (s *Service) running(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	switch {
	case c == nil:
		return nil, errorf(codes.NotFound, "no such container: %s", id)
	case c.first.running() == nil:
		return nil, errorf(codes.FailedPrecondition, "container %s is not running", id)
	}
	return c, nil
}

// process finds a process by its container and exec ID.
func (s *Service) process(container, exec string) (*process, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	execs := s.guestExecs
	if container != "" {
		s.mu.Lock()
		c := s.containers[container]
		s.mu.Unlock()
		if c == nil {
			return nil, errorf(codes.NotFound, "no such container: %s", container)
		}
		execs = c.execs
	}
	p := execs.get(exec)
	if p == nil {
		return nil, errorf(codes.NotFound, "no such exec: %s", exec)
	}
	return p, nil
}

// Wait implements proto.AgentService.
func (s *Service) Wait(ctx context.Context, req *proto.ProcessRequest) (*proto.WaitResponse, error) {
	p, err := s.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	return p.wait(ctx)
}

// Signal implements proto.AgentService.
func (s *Service) Signal(_ context.Context, req *proto.SignalRequest) (*proto.Empty, error) {
	p, err := s.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	if req.Signal == 0 || req.Signal > 64 {
		return nil, errorf(codes.InvalidArgument, "signal %d: not a Linux signal", req.Signal)
	}
	h := p.running()
	if h == nil {
		return nil, errorf(codes.FailedPrecondition, "%s is not running", processName(req.Container, req.Exec))
	}
	send := h.Signal
	if req.All && req.Container != "" {
		c, err := s.running(req.Container)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		send = c.runtime.SignalAll
		c.mu.Unlock()
	}
	if err := send(int(req.Signal)); err != nil {
		return nil, failed("signal "+unix.SignalName(unix.Signal(req.Signal)), err)
	}
	return &proto.Empty{}, nil
}

// Resize implements proto.AgentService.
func (s *Service) Resize(_ context.Context, req *proto.ResizeRequest) (*proto.Empty, error) {
	p, err := s.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	h := p.running()
	if h == nil {
		return nil, errorf(codes.FailedPrecondition, "%s is not running", processName(req.Container, req.Exec))
	}
	if err := h.Resize(uint16(req.Size.GetRows()), uint16(req.Size.GetColumns())); err != nil {
		return nil, failed("resize", err)
	}
	return &proto.Empty{}, nil
}

func processName(container, exec string) string {
	switch {
	case exec == "":
		return "container " + container
	case container == "":
		return "process " + exec
	}
	return "exec " + exec
}
