package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/boot"
	"sampan/guest/health"
	"sampan/guest/runtime"
	"sampan/proto"
)

const (
	containersRun  = boot.RunDir + "/containers"
	containersData = boot.DataDir + "/containers"
	// destroyTimeout bounds the end of a container whose first process has
	// ended: everything in it gets SIGKILL.
	destroyTimeout = 10 * time.Second
)

// container is one between Start and Remove.
type container struct {
	id    string
	first *process // the container's first process; in execs as ""
	execs *processes
	up    chan struct{} // closed when Start has returned
	gone  chan struct{} // closed when nothing but its data is left

	mu      sync.Mutex
	runtime *runtime.Container // nil until it runs
	health  *health.Monitor    // nil without a check, and until it runs
	root    *rootfs            // nil unless mounted
}

// Start implements proto.AgentService.
func (s *Service) Start(ctx context.Context, req *proto.StartRequest) (*proto.StartResponse, error) {
	c, err := s.enter(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	defer close(c.up)
	if s.cfg.Away != nil {
		defer s.cfg.Away()()
	}
	giveBack, err := s.spare.borrow()
	if err != nil {
		s.cfg.Log.Warn(err.Error()) // the start may work without
	} else {
		defer func() {
			if err := giveBack(); err != nil {
				s.cfg.Log.Warn(err.Error())
			}
		}()
	}
	pid, err := s.start(ctx, c, req)
	if err != nil {
		s.cfg.Streams.forget(req.Id, "")
		s.mu.Lock()
		delete(s.containers, req.Id)
		s.mu.Unlock()
		c.first.failed(err)
		close(c.gone)
		go s.prepareNext()
		if err := diskFailed(); err != nil { // which explains it
			return nil, err
		}
		return nil, failed("", err)
	}
	time.AfterFunc(s.cfg.SettleIn, s.prepareNext) // without effect once the runtime is closed
	return &proto.StartResponse{Pid: int32(pid)}, nil
}

// diskFailed says whether the data disk takes nothing any more: the file system
// sees to that when the disk fails its journal, as it does when the host's is
// full, and only a check before the next mount makes it whole again. The mount's
// flags don't tell (ext4, since Linux 6.12), so it is tried.
func diskFailed() error {
	err := os.MkdirAll(trashDir, 0o700)
	if err == nil {
		var dir string
		if dir, err = os.MkdirTemp(trashDir, ""); err == nil {
			return os.Remove(dir)
		}
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO) {
		return errorf(codes.DataLoss, "the data disk takes no more writes since an error of the host's disk, which may be full")
	}
	return nil
}

// prepareNext makes ready for the next Start and Exec.
func (s *Service) prepareNext() { s.reserved(s.cfg.Runtime.Reserve()) }

// prepareFirst makes ready for the first Start.
func (s *Service) prepareFirst() { s.reserved(s.cfg.Runtime.ReserveCreate()) }

func (s *Service) reserved(err error) {
	if err != nil {
		s.cfg.Log.Warn("no process in reserve: " + err.Error())
	}
}

// enter lists a container that is about to start. One of the same name that
// has ended is forgotten.
func (s *Service) enter(ctx context.Context, id string) (*container, error) {
	if err := checkName("container", id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	old := s.containers[id]
	s.mu.Unlock()
	if old != nil {
		if _, err := s.Remove(ctx, &proto.RemoveRequest{Id: id}); err != nil {
			return nil, err
		}
	}
	if old = s.leaver(id); old != nil {
		select {
		case <-old.gone:
		case <-ctx.Done():
			return nil, failed("start container "+id, ctx.Err())
		}
	}
	if err := s.transfers.end(ctx, id); err != nil {
		return nil, failed("start container "+id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.readyLocked(); err != nil {
		return nil, err
	}
	if s.containers[id] != nil {
		return nil, errorf(codes.FailedPrecondition, "container %s is already running", id)
	}
	c := &container{id: id, execs: newProcesses(), up: make(chan struct{}), gone: make(chan struct{})}
	var err error
	if c.first, err = c.execs.add(""); err != nil {
		return nil, err
	}
	s.containers[id] = c
	return c, nil
}

// start brings a container up. After an error nothing is left.
func (s *Service) start(ctx context.Context, c *container, req *proto.StartRequest) (pid int, err error) {
	spec, err := parseSpec(req)
	if err != nil {
		return 0, err
	}
	shared, err := s.shareNamespaces(spec)
	if err != nil {
		return 0, err
	}
	defer func() { err = s.errorOf(err, shared) }()
	if err := addDevices(spec, req); err != nil {
		return 0, err
	}
	check, checkSpec, err := healthCheck(req.Health)
	if err != nil {
		return 0, err
	}
	var undo undo
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	root := &rootfs{
		layers: s.layers, names: req.Layers,
		run: filepath.Join(containersRun, c.id), data: filepath.Join(containersData, c.id),
		ephemeral: req.Ephemeral,
	}
	stdio, err := newStdio(req.Streams, req.Size)
	if err != nil {
		return 0, err
	}
	undo.add(stdio.closeOurs)
	streams := s.cfg.Streams.await(ctx, req.Id, "", streamNames(req.Streams))
	undo.add(streams.close)
	cfg := runtime.Config{
		ID: c.id, Spec: spec, Seccomp: req.Seccomp, Rootfs: root.root(), Init: req.Init,
		Prepare: func() error {
			if err := root.mount(); err != nil {
				return err
			}
			undo.add(func() { s.logError(root.unmount()) })
			return s.resolveMounts(root, spec, req.Files)
		},
	}
	if len(req.Endpoints) > 0 {
		undo.add(func() { s.logError(s.network.Leave(c.id)) })
		cfg.NetNS = func(pid int) error { return s.join(c.id, pid, req) }
	} else {
		s.later() // it must see all processors; an error is of networks only
	}
	ctr, err := s.cfg.Runtime.Create(ctx, cfg, stdio.child)
	stdio.closeChild()
	if err != nil {
		return 0, err
	}
	undo.add(func() { s.destroy(ctr, c.id) })
	p := ctr.Process()
	if spec.Process.Terminal {
		if err := stdio.terminal(p.Console); err != nil {
			return 0, err
		}
	}
	conns, err := streams.wait()
	if err != nil {
		return 0, err
	}
	if err := p.Start(); err != nil {
		return 0, err
	}
	stdio.connect(conns)
	c.mu.Lock()
	c.runtime, c.root = ctr, root
	if check != nil {
		c.health = health.Start(*check, probe(ctr, checkSpec))
	}
	c.mu.Unlock()
	c.first.started(p)
	go s.watch(c, ctr, stdio, root)
	return p.Pid(), nil
}

// parseSpec reads the request's spec and checks what Start relies on.
func parseSpec(req *proto.StartRequest) (*specs.Spec, error) {
	spec := new(specs.Spec)
	if err := json.Unmarshal(req.Spec, spec); err != nil {
		return nil, errorf(codes.InvalidArgument, "spec: %v", err)
	}
	if spec.Process == nil || spec.Linux == nil {
		return nil, errorf(codes.InvalidArgument, "spec: want process and linux")
	}
	if spec.Process.Terminal != req.Streams.GetTty() {
		return nil, errorf(codes.InvalidArgument, "spec: terminal %v, but stream tty %v", spec.Process.Terminal, req.Streams.GetTty())
	}
	for _, l := range req.Layers {
		if err := checkName("layer", l); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

// join gives a container's process its network, and takes it from one that has
// died before. The machine's first waits for the firewall, which may still be on
// its way.
func (s *Service) join(id string, pid int, req *proto.StartRequest) error {
	if err := s.later(); err != nil {
		return err
	}
	if err := s.network.Leave(id); err != nil {
		return err
	}
	return s.network.Join(id, pid, req.Endpoints, req.Resolver, req.Published)
}

// watch waits for the end of a container and takes it down.
func (s *Service) watch(c *container, ctr *runtime.Container, stdio *stdio, root *rootfs) {
	defer close(c.gone)
	st, err := ctr.Process().Wait(context.Background())
	// Before anybody hears of the end, and gives its addresses to others.
	s.logError(s.network.Leave(c.id))
	c.first.ended(st, ctr.OOMKilled(), err)
	stdio.closeStdin()
	closeConsole(ctr.Process())
	s.destroy(ctr, c.id)
	if c.health != nil {
		c.health.Stop() // its probe was killed with the container
	}
	c.mu.Lock()
	c.root = nil
	c.mu.Unlock()
	s.logError(root.unmount())
}

// destroy ends what is left of a container.
func (s *Service) destroy(ctr *runtime.Container, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
	defer cancel()
	if err := ctr.Destroy(ctx); err != nil {
		s.logError(fmt.Errorf("container %s: %w", id, err))
	}
}

func (s *Service) logError(err error) {
	if err != nil {
		s.cfg.Log.Error(err.Error())
	}
}

// Remove implements proto.AgentService.
func (s *Service) Remove(ctx context.Context, req *proto.RemoveRequest) (*proto.Empty, error) {
	if err := checkName("container", req.Id); err != nil {
		return nil, err
	}
	if err := s.ready(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	c := s.containers[req.Id]
	s.mu.Unlock()
	if c != nil {
		select {
		case <-c.first.done:
		default:
			return nil, errorf(codes.FailedPrecondition, "container %s is running", req.Id)
		}
		s.leave(c)
	}
	if req.Purge {
		if err := s.transfers.end(ctx, req.Id); err != nil {
			return nil, failed("remove container "+req.Id, err)
		}
		var gone <-chan struct{}
		if c = s.leaver(req.Id); c != nil {
			gone = c.gone
		}
		if err := discard(filepath.Join(containersData, req.Id), gone); err != nil {
			return nil, failed("remove container "+req.Id, err)
		}
	}
	go s.layers.sweep()
	return &proto.Empty{}, nil
}

// leave forgets a container whose first process has ended. What is left of it
// is taken down meanwhile, so that nobody has to wait; but for a new one of its
// name, and for the power-off.
func (s *Service) leave(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] != c {
		return
	}
	delete(s.containers, c.id)
	s.leaving[c.id] = c
	go func() {
		<-c.gone // soon: destroyTimeout
		s.mu.Lock()
		delete(s.leaving, c.id)
		s.mu.Unlock()
		s.layers.sweep()
	}()
}

// leaver is the container of that name that is being taken down, or nil.
func (s *Service) leaver(id string) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving[id]
}

// end ends a container for the machine's power-off.
func (c *container) end(ctx context.Context, grace time.Duration) error {
	select {
	case <-c.up:
	case <-ctx.Done():
		return fmt.Errorf("container %s does not start: %w", c.id, ctx.Err())
	}
	if h := c.first.running(); h != nil && grace > 0 {
		h.Signal(int(unix.SIGTERM)) // it may have just ended
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.first.done:
		case <-t.C:
		}
	}
	c.mu.Lock()
	ctr := c.runtime
	c.mu.Unlock()
	if ctr != nil && c.first.running() != nil {
		if err := ctr.SignalAll(int(unix.SIGKILL)); err != nil && !errors.Is(err, runtime.ErrNotRunning) {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s does not end: %w", c.id, ctx.Err())
	}
}

// undo is a list of steps to take back, last first.
type undo struct{ steps []func() }

func (u *undo) add(f func()) { u.steps = append(u.steps, f) }

func (u *undo) run() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
}
