package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/host/engine"
	"sampan/host/machine"
	"sampan/proto"
)

// fakeMachine is a machine whose guest is a fakeGuest.
type fakeMachine struct {
	mu    sync.Mutex
	guest *fakeGuest
	boots int
	holds int
	// slow holds up whoever asks for the guest, until it's closed; nil: nobody.
	slow    chan struct{}
	waiting atomic.Int32
}

func (m *fakeMachine) Guest(ctx context.Context) (engine.Guest, error) {
	if m.slow != nil {
		m.waiting.Add(1)
		defer m.waiting.Add(-1)
		select {
		case <-m.slow:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest == nil {
		m.boots++
		m.guest = &fakeGuest{
			done: make(chan struct{}), procs: map[string]*process{}, networkNames: map[string]string{},
			checks: map[string]*proto.HealthCheck{}, health: make(chan *proto.HealthResult), transfers: map[string]net.Conn{},
		}
	}
	return m.guest, nil
}

func (m *fakeMachine) Running() engine.Guest {
	if g := m.running(); g != nil {
		return g
	}
	return nil
}

func (m *fakeMachine) running() *fakeGuest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest
}

func (m *fakeMachine) Hold() func() {
	m.mu.Lock()
	m.holds++
	m.mu.Unlock()
	return sync.OnceFunc(func() { m.mu.Lock(); m.holds--; m.mu.Unlock() })
}

// crash pulls the plug.
func (m *fakeMachine) crash() {
	m.mu.Lock()
	g := m.guest
	m.guest = nil
	m.mu.Unlock()
	if g != nil {
		g.crash()
	}
}

func (m *fakeMachine) Stop(context.Context) error            { m.crash(); return nil }
func (m *fakeMachine) GrowDisk(int64) error                  { return errors.New("the disk of a fake can't grow") }
func (m *fakeMachine) Status(context.Context) machine.Status { return machine.Status{} }
func (m *fakeMachine) Usage() machine.Usage {
	return machine.Usage{State: machine.Stopped, Memory: 1 << 30}
}
func (m *fakeMachine) ConsoleLog() string { return os.DevNull }

// fakeGuest is an agent whose processes are goroutines.
type fakeGuest struct {
	proto.AgentService // what is not implemented panics
	done               chan struct{}

	mu      sync.Mutex
	frozen  bool
	pending []func()            // signals to what is frozen
	procs   map[string]*process // by container/exec
	removed []string            // purged containers and volumes
	packing int                 // calls of Pack under way
	robbed  []string            // volumes that were purged meanwhile
	resized []string
	calls   []string
	samples uint64
	looked  int                           // for layers that were removed
	checks  map[string]*proto.HealthCheck // asked for, by container
	// health is what checks find, for whichever container asks.
	health chan *proto.HealthResult
	// networks are what was told of them.
	networks     []string
	networkNames map[string]string // by ID
	transfers    map[string]net.Conn
	freezeErr    error  // of Freeze
	beforeFreeze func() // optional
	measuring    func() // optional: told that Changes waits for the end of its context
}

// heard notes what was told of a network.
func (g *fakeGuest) heard(format string, args ...any) {
	g.mu.Lock()
	g.networks = append(g.networks, fmt.Sprintf(format, args...))
	g.mu.Unlock()
}

func (g *fakeGuest) networkName(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.networkNames[id]
}

func (g *fakeGuest) Connect(_ context.Context, req *proto.ConnectRequest) (*proto.Empty, error) {
	e := req.Endpoint
	g.heard("connect %s %s %v %v %v", e.Network.Name, e.Name, e.Addresses, e.Names, e.Links)
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Disconnect(_ context.Context, req *proto.DisconnectRequest) (*proto.Empty, error) {
	g.heard("disconnect %s", g.networkName(req.Network))
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Relink(_ context.Context, req *proto.RelinkRequest) (*proto.Empty, error) {
	g.heard("relink %s %s", req.Alias, req.Address)
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Publish(_ context.Context, req *proto.PublishRequest) (*proto.Empty, error) {
	g.heard("publish %d", len(req.Published))
	return &proto.Empty{}, nil
}

func (g *fakeGuest) RemoveNetwork(_ context.Context, req *proto.NetworkRequest) (*proto.Empty, error) {
	g.heard("remove %s", g.networkName(req.Id))
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Done() <-chan struct{} { return g.done }

func (g *fakeGuest) crash() {
	close(g.done)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.procs {
		p.hangUp()
	}
}

var errGone = errors.New("connection closed: the guest is gone")

func (g *fakeGuest) Dial(context.Context, string, string) (net.Conn, error) { return nil, errGone }

func (g *fakeGuest) Listeners(context.Context) (net.Conn, error) { return nil, errGone }

func (g *fakeGuest) Archive(_ context.Context, _, transfer string) (net.Conn, error) {
	near, far := net.Pipe()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.transfers[transfer] = far
	return near, nil
}

func (g *fakeGuest) transfer(id string) net.Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.transfers[id]
}

// Pack sends zeros until nobody wants more.
func (g *fakeGuest) Pack(_ context.Context, req *proto.PackRequest) (*proto.Empty, error) {
	conn := g.transfer(req.Transfer)
	defer conn.Close()
	g.pack(1)
	defer g.pack(-1)
	for {
		if _, err := conn.Write(make([]byte, 4096)); err != nil {
			return nil, err
		}
	}
}

func (g *fakeGuest) pack(more int) {
	g.mu.Lock()
	g.packing += more
	g.mu.Unlock()
}

// Unpack reads to the end.
func (g *fakeGuest) Unpack(_ context.Context, req *proto.UnpackRequest) (*proto.Empty, error) {
	conn := g.transfer(req.Transfer)
	defer conn.Close()
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return nil, err
	}
	return &proto.Empty{}, nil
}

// proc finds or makes a process: streams and the call come in any order.
func (g *fakeGuest) proc(container, exec string) *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := container + "/" + exec
	p := g.procs[key]
	if p == nil {
		p = &process{conns: map[string]net.Conn{}, come: make(chan struct{}, 4), signals: make(chan int, 16), ended: make(chan struct{})}
		g.procs[key] = p
	}
	return p
}

func (g *fakeGuest) Stdio(_ context.Context, container, exec, stream string) (net.Conn, error) {
	syscall.ForkLock.RLock() // the docker command must not inherit an end
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stdio")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		f.Close()
	}
	p := g.proc(container, exec)
	p.mu.Lock()
	p.conns[stream] = ends[0]
	p.mu.Unlock()
	p.come <- struct{}{}
	return ends[1], nil
}

func (g *fakeGuest) Start(ctx context.Context, req *proto.StartRequest) (*proto.StartResponse, error) {
	var spec specs.Spec
	if err := json.Unmarshal(req.Spec, &spec); err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.checks[req.Id] = req.Health
	g.mu.Unlock()
	for _, e := range req.Endpoints {
		if e.Network.Resolve { // the default bridge is in most tests, and told of in none
			g.heard("start %s %s %v %v %v", e.Network.Name, e.Name, e.Addresses, e.Names, e.Links)
		}
		g.mu.Lock()
		g.networkNames[e.Network.Id] = e.Network.Name
		g.mu.Unlock()
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Path != "" {
			g.heard("share %s", ns.Path)
		}
	}
	return g.run(ctx, req.Id, "", spec.Process, req.Streams)
}

func (g *fakeGuest) Health(ctx context.Context, req *proto.HealthRequest) (*proto.HealthResponse, error) {
	select {
	case r := <-g.health:
		return &proto.HealthResponse{Results: []*proto.HealthResult{r}}, nil
	case <-g.proc(req.Container, "").ended:
		return nil, status.Error(codes.FailedPrecondition, "the container has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-g.done:
		return nil, errGone
	}
}

func (g *fakeGuest) Exec(ctx context.Context, req *proto.ExecRequest) (*proto.StartResponse, error) {
	var p specs.Process
	if err := json.Unmarshal(req.Process, &p); err != nil {
		return nil, err
	}
	return g.run(ctx, req.Container, req.Exec, &p, req.Streams)
}

func (g *fakeGuest) run(ctx context.Context, container, exec string, spec *specs.Process, want *proto.Streams) (*proto.StartResponse, error) {
	p := g.proc(container, exec)
	n := 0
	for _, on := range []bool{want.Tty, !want.Tty && want.Stdin, !want.Tty && want.Stdout, !want.Tty && want.Stderr} {
		if on {
			n++
		}
	}
	for range n {
		select {
		case <-p.come:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	refuse := func(code codes.Code, text string) (*proto.StartResponse, error) {
		g.mu.Lock()
		delete(g.procs, container+"/"+exec)
		g.mu.Unlock()
		p.hangUp()
		return nil, status.Errorf(code, "exec: %q: %s", spec.Args[0], text)
	}
	switch spec.Args[0] {
	case "missing":
		return refuse(codes.NotFound, "executable file not found in $PATH")
	case "noexec":
		return refuse(codes.PermissionDenied, "permission denied")
	case "late": // the container is killed just before
		if _, err := g.Signal(ctx, &proto.SignalRequest{Container: container, Signal: 9}); err != nil {
			return nil, err
		}
		return refuse(codes.Unavailable, "fork into the container: cannot allocate memory")
	}
	p.env = spec.Env
	go func() {
		p.code = p.main(spec.Args)
		p.at = time.Now()
		p.hangUp()
		close(p.ended)
	}()
	return &proto.StartResponse{Pid: 42}, nil
}

func (g *fakeGuest) Wait(ctx context.Context, req *proto.ProcessRequest) (*proto.WaitResponse, error) {
	p := g.proc(req.Container, req.Exec)
	select {
	case <-p.ended:
		return &proto.WaitResponse{ExitCode: int32(p.code), ExitedUnixNano: p.at.UnixNano()}, nil
	case <-g.done:
		return nil, errGone
	}
}

func (g *fakeGuest) Signal(_ context.Context, req *proto.SignalRequest) (*proto.Empty, error) {
	p := g.proc(req.Container, req.Exec)
	g.mu.Lock()
	if g.frozen && req.Signal != 9 { // heard when it is thawed
		g.pending = append(g.pending, func() { g.signal(p, int(req.Signal)) })
		g.mu.Unlock()
		return &proto.Empty{}, nil
	}
	g.mu.Unlock()
	return &proto.Empty{}, g.signal(p, int(req.Signal))
}

func (g *fakeGuest) signal(p *process, number int) error {
	select {
	case <-p.ended:
		return status.Error(codes.NotFound, "process has ended")
	case <-g.done:
		return errGone
	case p.signals <- number:
		return nil
	}
}

func (g *fakeGuest) Resize(_ context.Context, req *proto.ResizeRequest) (*proto.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resized = append(g.resized, fmt.Sprintf("%dx%d", req.Size.Rows, req.Size.Columns))
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Remove(_ context.Context, req *proto.RemoveRequest) (*proto.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.procs, req.Id+"/")
	if req.Purge {
		g.removed = append(g.removed, req.Id)
	}
	return &proto.Empty{}, nil
}

// Changes finds that each container has written a thousand bytes.
func (g *fakeGuest) Changes(ctx context.Context, _ *proto.ChangesRequest) (*proto.ChangesResponse, error) {
	if f := g.measuring; f != nil {
		f()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &proto.ChangesResponse{Size: 1000}, nil
}

func (g *fakeGuest) Freeze(_ context.Context, req *proto.FreezeRequest) (*proto.Empty, error) {
	if f := g.beforeFreeze; f != nil {
		f()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, fmt.Sprint("freeze ", req.Frozen))
	if g.freezeErr != nil {
		return nil, g.freezeErr
	}
	if g.frozen = req.Frozen; !g.frozen {
		for _, f := range g.pending {
			go f()
		}
		g.pending = nil
	}
	return &proto.Empty{}, nil
}

func (g *fakeGuest) Limit(_ context.Context, req *proto.LimitRequest) (*proto.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, "limit "+string(req.Resources))
	return &proto.Empty{}, nil
}

// Usage counts up: each call finds a tenth of a second of one of two processors
// used in the last half.
func (g *fakeGuest) Usage(context.Context, *proto.ProcessRequest) (*proto.UsageResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.samples++
	return &proto.UsageResponse{
		TimeUnixNano: time.Now().UnixNano(), CpuNano: g.samples * 1e8, SystemNano: g.samples * 1e9, Processors: 2,
		Memory: 3 << 20, MemoryLimit: 10 << 20, MemoryStat: map[string]uint64{"inactive_file": 1 << 20}, Processes: 4,
		Devices:    []*proto.DeviceUsage{{Major: 8, Read: 1000, Written: 2000}},
		Interfaces: []*proto.InterfaceUsage{{Name: "eth0", RxBytes: 3000, TxBytes: 4000}},
	}, nil
}

func (g *fakeGuest) Processes(context.Context, *proto.ProcessRequest) (*proto.ProcessesResponse, error) {
	now := time.Now()
	return &proto.ProcessesResponse{
		TimeUnixNano: now.UnixNano(), UptimeNano: 1e12, MemoryTotal: 1 << 30,
		Processes: []*proto.ProcessInfo{
			{Pid: 43, Parent: 42, Uid: 1000, State: "S", StartNano: 9e11, CpuNano: 61e9, Name: "worker", Threads: 2, Tty: 136 << 8},
			{Pid: 42, Parent: 1, State: "S", Session: 42, StartNano: 9e11, Name: "main", Args: []string{"main", "--all"}, Threads: 1},
		},
	}, nil
}

// Status looks for layers that were removed, as the agent's does.
func (g *fakeGuest) Status(context.Context, *proto.Empty) (*proto.StatusResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.looked++
	return &proto.StatusResponse{}, nil
}

func (g *fakeGuest) RemoveVolume(_ context.Context, req *proto.VolumeRequest) (*proto.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removed = append(g.removed, req.Name)
	if g.packing > 0 {
		g.robbed = append(g.robbed, req.Name)
	}
	return &proto.Empty{}, nil
}

// process is one of the guest's. What it does is told by its arguments, see
// main.
type process struct {
	mu      sync.Mutex
	conns   map[string]net.Conn
	come    chan struct{} // one for each stream
	signals chan int
	env     []string

	ended chan struct{}
	code  int
	at    time.Time
}

func (p *process) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

// stream is a standard stream, the terminal, or nothing.
func (p *process) stream(name string) io.ReadWriter {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range []string{name, proto.TTY} {
		if c := p.conns[n]; c != nil {
			return c
		}
	}
	return struct {
		io.Reader
		io.Writer
	}{strings.NewReader(""), io.Discard}
}

// main is the process's program:
//
//	true | exit N          end with that code
//	echo WORD…             to stdout; err WORD… to stderr
//	both                   "out\n" to stdout, "err\n" to stderr
//	cat                    stdin to stdout until the end
//	wc                     count stdin until its end, then print
//	sleep                  until a signal; SIGTERM ends it with 143
//	stubborn               until SIGKILL
//	spam N                 N bytes of lines, then "last\n"
//	ticks                  a line for each SIGUSR1 (10), until SIGTERM
func (p *process) main(args []string) int {
	out, errs := p.stream(proto.Stdout), p.stream(proto.Stderr)
	rest := strings.Join(args[1:], " ")
	switch args[0] {
	case "true":
		return 0
	case "exit":
		n, _ := strconv.Atoi(rest)
		return n
	case "echo":
		fmt.Fprintln(out, rest)
	case "err":
		fmt.Fprintln(errs, rest)
	case "env":
		fmt.Fprintln(out, strings.Join(p.env, "\n"))
	case "both":
		fmt.Fprintln(out, "out")
		fmt.Fprintln(errs, "err")
	case "cat":
		io.Copy(out, p.stream(proto.Stdin))
	case "wc":
		n, _ := io.Copy(io.Discard, p.stream(proto.Stdin))
		fmt.Fprintln(out, n)
	case "spam":
		n, _ := strconv.Atoi(rest)
		out.Write(bytes.Repeat([]byte("0123456789abcde\n"), n/16))
		fmt.Fprintln(out, "last")
	case "sleep", "stubborn", "ticks":
		fmt.Fprintln(out, "ready")
		for s := range p.signals {
			switch {
			case args[0] == "ticks" && s == 10:
				fmt.Fprintln(out, "tick")
			case s == 9, s == 15 && args[0] != "stubborn":
				return 128 + s
			}
		}
	default:
		fmt.Fprintln(errs, "fake guest: no such program:", args[0])
		return 99
	}
	return 0
}
