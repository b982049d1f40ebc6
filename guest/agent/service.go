package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/boot"
	"sampan/guest/network"
	"sampan/guest/runtime"
	"sampan/proto"
)

// Config is what a Service needs. All fields are required but those marked
// optional.
type Config struct {
	Runtime  *runtime.Runtime
	Children *runtime.Children
	Streams  *Streams
	// DialHost connects to a vsock port of the host.
	DialHost func(port uint32) (net.Conn, error)
	// Stages and DataDisk tell about the boot, for Configure.
	Stages   func() []boot.Stage
	DataDisk string
	// Later ends when the boot has loaded what only networks need; the first
	// container with one waits for it.
	Later func() error
	// Settle is called once, when all is done that Configure has begun and the next
	// Start may need. Optional.
	Settle func()
	// SettleIn is how long a new container's process has the machine to itself,
	// before the next one's is prepared. Optional.
	SettleIn time.Duration
	// Away lets the agent run on every processor until back is called (boot.Home).
	// Optional.
	Away func() (back func())
	// Build is the agent's version. Optional.
	Build string
	Log   *slog.Logger
}

// Service implements proto.AgentService.
type Service struct {
	cfg    Config
	layers *layers
	later  func() error
	off    chan struct{} // closed by PowerOff
	offOne sync.Once
	spare  reserve

	transfers transfers

	mu         sync.Mutex
	network    *network.Network // set by Configure
	containers map[string]*container
	leaving    map[string]*container // removed, and being taken down
	guestExecs *processes            // of the guest itself
	ending     bool                  // no new processes
	volumes    map[string]*sync.Mutex
}

// New returns a service. It touches nothing before Configure.
func New(cfg Config) *Service {
	return &Service{
		cfg: cfg, layers: newLayers(boot.ImagesDir, boot.RunDir+"/layers"),
		off: make(chan struct{}), containers: map[string]*container{}, leaving: map[string]*container{},
		guestExecs: newProcesses(), volumes: map[string]*sync.Mutex{},
		transfers: transfers{all: map[*transfer]struct{}{}, stopped: map[string]*stoppedRoot{}},
	}
}

// Configure implements proto.AgentService.
func (s *Service) Configure(_ context.Context, req *proto.ConfigureRequest) (*proto.ConfigureResponse, error) {
	if req.Version != proto.Version {
		return nil, errorf(codes.FailedPrecondition, "the guest speaks version %d of the protocol, the host %d", proto.Version, req.Version)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.network != nil {
		return nil, errorf(codes.FailedPrecondition, "configured already")
	}
	if err := setClock(req.TimeUnixNano); err != nil {
		return nil, failed("set clock", err)
	}
	if req.Hostname != "" {
		if err := unix.Sethostname([]byte(req.Hostname)); err != nil {
			return nil, failed("set host name", err)
		}
	}
	net, err := network.New(req.Uplink)
	if err != nil {
		return nil, failed("network", err)
	}
	if err := writeResolvConf(req.Uplink.GetDns()); err != nil {
		return nil, failed("name servers", err)
	}
	s.network = net
	// The firewall needs modules that are still being loaded.
	s.later = sync.OnceValue(func() error { return errors.Join(s.cfg.Later(), net.Allow()) })
	var begun sync.WaitGroup
	begun.Go(func() {
		if err := s.later(); err != nil {
			s.cfg.Log.Error("containers get no network: " + err.Error())
		}
	})
	begun.Go(s.prepareFirst)
	if s.cfg.Settle != nil {
		go func() { begun.Wait(); s.cfg.Settle() }()
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, failed("uname", err)
	}
	res := &proto.ConfigureResponse{
		Version: proto.Version, Build: s.cfg.Build, Kernel: unix.ByteSliceToString(u.Release[:]),
		DataDisk: s.cfg.DataDisk,
	}
	for _, st := range s.cfg.Stages() {
		res.Stages = append(res.Stages, &proto.BootStage{Name: st.Name, UptimeNano: int64(st.Uptime)})
	}
	return res, nil
}

// writeResolvConf tells the guest's own programs the name servers.
func writeResolvConf(servers []string) error {
	var b strings.Builder
	for _, ip := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", ip)
	}
	return os.WriteFile(boot.ResolvConf, []byte(b.String()), 0o644)
}

// ready says whether a call other than Configure may be served.
func (s *Service) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readyLocked()
}

func (s *Service) readyLocked() error {
	switch {
	case s.network == nil:
		return errorf(codes.FailedPrecondition, "not configured")
	case s.ending:
		return errorf(codes.FailedPrecondition, "the guest is powering off")
	}
	return nil
}

// PowerOff implements proto.AgentService: it ends everything, and then PID 1
// turns the machine off.
func (s *Service) PowerOff(_ context.Context, req *proto.PowerOffRequest) (*proto.Empty, error) {
	s.End(time.Duration(req.GraceMs) * time.Millisecond)
	s.offOne.Do(func() { close(s.off) })
	return &proto.Empty{}, nil
}

// Off is closed when the host has asked for the machine to be turned off and
// every process has ended.
func (s *Service) Off() <-chan struct{} { return s.off }

// endTimeout bounds what follows SIGKILL.
const endTimeout = 5 * time.Second

// End ends all processes: SIGTERM, and after grace SIGKILL. No new ones start.
func (s *Service) End(grace time.Duration) {
	s.mu.Lock()
	s.ending = true
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	for _, c := range s.leaving {
		all = append(all, c)
	}
	s.mu.Unlock()
	s.cfg.Streams.endReplays()
	ctx, cancel := context.WithTimeout(context.Background(), grace+endTimeout)
	defer cancel()
	var eg errgroup.Group
	eg.Go(func() error { return s.transfers.end(ctx, "") })
	for _, c := range all {
		eg.Go(func() error { return c.end(ctx, grace) })
	}
	eg.Go(func() error { s.guestExecs.signal(int(unix.SIGKILL)); return nil })
	if err := eg.Wait(); err != nil {
		s.cfg.Log.Warn(err.Error())
	}
	if err := s.cfg.Runtime.Close(); err != nil {
		s.cfg.Log.Warn(err.Error())
	}
	s.layers.unmountAll()
}
