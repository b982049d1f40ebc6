package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinet "github.com/moby/moby/api/types/network"

	"sampan/host/machine"
	"sampan/host/network"
	"sampan/host/share"
	"sampan/proto"
)

// Guest is a session with the agent of a running machine.
type Guest interface {
	proto.AgentService
	// Stdio opens one standard stream of a process; the connection has
	// CloseWrite.
	Stdio(ctx context.Context, container, exec, stream string) (net.Conn, error)
	// Archive opens the stream of a transfer of a container's files; the
	// connection has CloseWrite.
	Archive(ctx context.Context, container, transfer string) (net.Conn, error)
	// Dial opens a network connection from within the guest.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Listeners opens the stream of the ports that the guest's own network
	// namespace listens on (proto.StreamListeners).
	Listeners(ctx context.Context) (net.Conn, error)
	// Done is closed when the session has ended.
	Done() <-chan struct{}
}

// Machine boots on demand.
type Machine interface {
	// Guest boots the machine if it does not run.
	Guest(context.Context) (Guest, error)
	// Running returns nil when the machine does not run.
	Running() Guest
	// Hold keeps the machine from stopping when idle.
	Hold() (release func())
	Stop(context.Context) error
	Status(context.Context) machine.Status
	Usage() machine.Usage
	// GrowDisk makes the data disk larger, from the next boot on.
	GrowDisk(size int64) error
	// ConsoleLog is the path of the guest's console log.
	ConsoleLog() string
}

// Export is a host path that the guest can reach.
type Export interface {
	// Name of its entry in the share proto.ShareHost, or of a socket.
	Name() string
	Close() error
}

// Image is what a container needs of an image.
type Image struct {
	ID     string   // "sha256:…"
	Layers []string // names of EROFS files, bottom layer first
	Arch   string   // GOARCH
	Size   int64    // of the files in all layers, in bytes
	Config *container.Config
}

// Config of an Engine. All fields are required but those marked optional.
type Config struct {
	Home    string // $SAMPAN_HOME
	Machine Machine
	// Image finds an image by reference or ID; an error of the class
	// errdefs.ErrNotFound says that there is none.
	Image func(ref string) (Image, error)
	// HoldLayers keeps an image's layers until release is called.
	HoldLayers func(layers []string) (release func())
	// Export gives the guest access to a host path.
	Export func(path string, readOnly bool) (Export, error)
	// Socket gives the guest access to a UNIX socket of the host; its name is
	// the source of a mount of type "socket".
	Socket func(path string) (Export, error)
	// DNS are the name servers of containers, without --dns.
	DNS []netip.Addr
	// HostGateway is the address of this host as containers see it: what
	// --add-host NAME:host-gateway means.
	HostGateway netip.Addr
	// NoMirror keeps the ports of containers in the host's network from being
	// there on the host's loopback. Optional.
	NoMirror bool
	// Warnings tell what outside the engine doesn't work. Optional.
	Warnings func() []string
	// Events tells what became of the host's changes in shared folders. Optional.
	Events func() share.Events
	// Uplink is the subnet between this host and the guest.
	Uplink netip.Prefix
	// Routes are the subnets that the host can reach, which networks keep out
	// of unless they are told to be there.
	Routes func() []netip.Prefix
	// Pools are where networks get their subnets from. Optional: Docker's.
	Pools []Pool
	// Arch of the guest, as GOARCH.
	Arch string
	// CPUs of the guest.
	CPUs int
	Log  *slog.Logger
}

// Engine holds the containers, volumes and execs. Its methods may be called
// from several goroutines.
type Engine struct {
	cfg     Config
	machine Machine
	log     *slog.Logger
	events  *bus
	purges  *purgeList
	ports   *network.Ports
	mirror  mirror
	// stopping says that the machine is being stopped on request: restart
	// policies wait.
	stopping atomic.Bool

	ctx    context.Context // of everything in the background; ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	containers map[string]*ctr   // by ID
	names      map[string]string // container's name to its ID
	volumes    map[string]*volumeRecord
	execs      map[string]*exec
	guest      Guest // last one seen

	// netMu guards the networks and who is in them. No other lock is taken
	// while it is held.
	netMu    sync.Mutex
	networks map[string]*networkState // by ID
}

// ctr is a container.
type ctr struct {
	id string
	// op is held by who starts or removes the container.
	op chan struct{}

	mu       sync.Mutex
	rec      record
	run      *run // nil unless running
	hub      *hub // of this run, or of the next
	log      *logWriter
	waiters  map[*waiter]struct{}
	removing bool
	gone     chan struct{} // closed when removed
	adopted  bool          // an earlier daemon made it; not modified
	failures int           // restarts in a row, for the back-off
	// again is closed when the policy's next start has been tried; nil when none
	// is to be.
	again chan struct{}
	// cancelRestart ends a back-off; nil unless restarting.
	cancelRestart context.CancelFunc
	// callOff ends a start that waits for the machine; nil when none does.
	callOff context.CancelFunc
	// users end the uses of the container's files that are under way; lent of
	// them hold op together. lending is closed when op has been taken for them.
	users         map[int]context.CancelFunc
	lent, nextUse int
	lending       chan struct{}
	releaseLayers func()
}

func (e *Engine) newCtr(rec record) *ctr {
	return &ctr{
		id: rec.ID, rec: rec,
		op:      make(chan struct{}, 1),
		hub:     newHub(e.tmp(), rec.Config.OpenStdin),
		waiters: map[*waiter]struct{}{},
		users:   map[int]context.CancelFunc{},
		gone:    make(chan struct{}),
	}
}

// New loads what is stored under Home and repairs what a crash has left.
// Restart starts the containers whose policy says so.
func New(cfg Config) (*Engine, error) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{
		cfg: cfg, machine: cfg.Machine, log: cfg.Log,
		events: newBus(), networks: map[string]*networkState{}, ports: network.NewPorts(cfg.Log),
		ctx: ctx, cancel: cancel,
		containers: map[string]*ctr{}, names: map[string]string{},
		volumes: map[string]*volumeRecord{}, execs: map[string]*exec{},
	}
	if err := os.RemoveAll(e.tmp()); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	for _, dir := range []string{"containers", "volumes", "networks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(cfg.Home, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open engine: %w", err)
		}
	}
	var err error
	if e.purges, err = loadPurges(filepath.Join(cfg.Home, "purge.json"), e.tmp()); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	if err := errors.Join(e.loadVolumes(), e.loadNetworks(), e.loadContainers()); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	if err := errors.Join(e.completeRemovals(), e.completeCreates()); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	return e, nil
}

// completeRemovals goes on where a crash has interrupted Remove.
func (e *Engine) completeRemovals() error {
	for _, c := range e.all() {
		if !c.rec.Removing && !e.purges.has(purge{Container: c.id}) {
			continue
		}
		e.log.Info("completing the removal of a container", "id", c.id)
		if err := e.removeClaimed(e.ctx, c, RemoveOptions{Volumes: c.rec.Removing || c.rec.HostConfig.AutoRemove}); err != nil {
			return err
		}
	}
	return nil
}

// completeCreates makes the anonymous volumes that a crash has kept Create from
// making: they come after the record of their container.
func (e *Engine) completeCreates() error {
	for _, c := range e.all() {
		for i := range c.rec.Mounts {
			m := &c.rec.Mounts[i]
			if m.Type != mount.TypeVolume || !m.Anonymous || e.volumes[m.Name] != nil {
				continue
			}
			if err := e.addVolume(anonymousVolume(m, c.rec.HostConfig)); err != nil {
				return err
			}
		}
	}
	return nil
}

// loadContainers reads the records. One that can't be read is set aside, not
// deleted.
func (e *Engine) loadContainers() error {
	root := filepath.Join(e.cfg.Home, "containers")
	dirs, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := filepath.Join(root, d.Name())
		var rec record
		err := readJSON(filepath.Join(dir, "config.json"), &rec)
		switch {
		case errors.Is(err, fs.ErrNotExist): // created halfway, or removed halfway
			e.log.Warn("removing what is left of a container", "id", d.Name())
			if err := e.purges.add(purge{Container: d.Name()}); err != nil {
				return err
			}
			os.RemoveAll(dir)
			continue
		case err != nil || rec.ID != d.Name() || rec.Config == nil || rec.HostConfig == nil:
			e.log.Error("container's record is damaged: left alone", "dir", dir, "error", err)
			continue
		}
		e.adopt(e.newCtr(rec))
	}
	return nil
}

// adopt takes over a container that an earlier daemon has left.
func (e *Engine) adopt(c *ctr) {
	c.adopted = true
	if c.rec.Networks == nil && !c.rec.HostConfig.NetworkMode.IsContainer() { // an older daemon's
		name := endpointNetwork(string(c.rec.HostConfig.NetworkMode))
		c.rec.Networks = []attachment{{Name: name, ID: builtinID(name), Asked: &apinet.EndpointSettings{}}}
	}
	e.containers[c.id] = c
	e.names[c.rec.Name] = c.id
	c.releaseLayers = e.cfg.HoldLayers(c.rec.Layers)
	switch c.rec.State.Status {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		s := &c.rec.State
		s.Status, s.Pid, s.ExitCode, s.FinishedAt = container.StateExited, 0, exitLost, time.Now().UTC()
		s.Error = "the daemon ended while the container was running"
		s.Health = endHealth(s.Health)
		e.trySave(c)
	}
}

// Restart removes the --rm containers that an earlier daemon has left, in
// whatever state, as Docker does, and starts those whose policy says so. It
// returns when all have been tried.
func (e *Engine) Restart(ctx context.Context) {
	var wg sync.WaitGroup
	all := e.all()
	tried := map[string]chan struct{}{} // closed; links wait for who is at their other end
	for _, c := range all {
		tried[c.id] = make(chan struct{})
	}
	over := map[string]func(){} // of those that come back, which is known before the first does
	for _, c := range all {
		c.mu.Lock()
		if c.run == nil && comesBack(&c.rec) {
			over[c.id] = c.comeBack()
		}
		c.mu.Unlock()
	}
	settled := func(id string) {
		close(tried[id])
		if f := over[id]; f != nil {
			f()
		}
	}
	for _, c := range all {
		c.mu.Lock()
		rec := c.rec
		running := c.run != nil
		c.mu.Unlock()
		switch {
		case running:
			settled(c.id)
		case rec.HostConfig.AutoRemove && c.adopted:
			// One that a client has started meanwhile is not removed: no Force.
			if err := e.Remove(ctx, c.id, RemoveOptions{Volumes: true}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				e.log.Error("remove container", "id", c.id, "error", err)
			}
			settled(c.id)
		case !comesBack(&rec):
			settled(c.id)
		default:
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer settled(c.id)
				for _, l := range rec.Links { // to older ones, and so in no circle
					if other := tried[l.ID]; other != nil {
						<-other
					}
				}
				e.awaitOwners(ctx, rec.HostConfig)
				if err := e.start(ctx, c, false); err != nil && !errdefs.IsNotModified(err) {
					e.log.Error("start container by its policy", "id", c.id, "error", err)
				}
			}()
		}
	}
	wg.Wait()
}

// Close ends everything in the background and waits for it. The machine must
// have been stopped before.
func (e *Engine) Close() {
	e.cancel()
	e.events.close()
	e.wg.Wait()
}

func (e *Engine) all() []*ctr {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*ctr, 0, len(e.containers))
	for _, c := range e.containers {
		out = append(out, c)
	}
	return out
}

// find looks a container up by ID, name, the name that a link gives it, or the
// beginning of its ID.
func (e *Engine) find(name string) (*ctr, error) {
	c, err := e.findOwn(name)
	if owner, alias, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/"); ok && err != nil {
		if to := e.linkEnd(owner, alias); to != nil {
			return to, nil
		}
	}
	return c, err
}

// findOwn is find without links.
func (e *Engine) findOwn(name string) (*ctr, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[name]; c != nil {
		return c, nil
	}
	// A name is taken before its container is made and given up after it is gone.
	if c := e.containers[e.names[strings.TrimPrefix(name, "/")]]; c != nil {
		return c, nil
	}
	var hit *ctr
	for id, c := range e.containers {
		if name != "" && strings.HasPrefix(id, name) {
			if hit != nil {
				return nil, invalid("multiple IDs found with provided prefix: %s", name)
			}
			hit = c
		}
	}
	if hit == nil {
		return nil, notFound("No such container: %s", name)
	}
	return hit, nil
}

// session returns the guest, booting the machine if need be, and sees to what
// has to be done once in each boot.
func (e *Engine) session(ctx context.Context) (Guest, error) {
	g, err := e.machine.Guest(ctx)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	fresh := e.guest != g
	e.guest = g
	e.mu.Unlock()
	if fresh && e.stopping.Swap(false) { // whatever has asked for the boot
		e.wg.Go(func() { e.Restart(e.ctx) })
	}
	// Nothing that was removed may come back: the purges come first.
	if err := e.purges.run(ctx, g); err != nil {
		e.log.Warn("removals are left for later", "error", err)
	}
	return g, nil
}
