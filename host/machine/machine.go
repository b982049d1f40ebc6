package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"sampan/host/share"
	"sampan/proto"
	"sampan/vm"
)

// Deadlines, for a machine under emulation on a busy laptop: a boot takes 2 to
// 5 s there.
const (
	bootTimeout  = 90 * time.Second // everything from Boot to Configure
	agentTimeout = 60 * time.Second // from the kernel's first line to the agent's call
	callTimeout  = 20 * time.Second // Configure
	graceTimeout = 10 * time.Second // containers, between SIGTERM and SIGKILL
	offTimeout   = 30 * time.Second // ordered power-off, before the plug is pulled
)

// Config is what a Machine is made from. All fields are required but those
// marked optional.
type Config struct {
	Driver vm.Driver
	// Kernel is called before each boot, for the files of the guest bundle.
	Kernel func() (*Files, error)
	CPUs   int
	Memory int64 // bytes

	// DataDisk is the file that holds writable layers and volumes, made sparse
	// with DataDiskSize bytes when it is missing.
	DataDisk     string
	DataDiskSize int64

	// Shares are the virtio-fs devices.
	Shares []vm.Share
	// Network attaches one boot's network card. The caller of Detach is this
	// package. Optional.
	Network Network

	// Relay serves the streams that the guest opens to this host's sockets.
	// Optional.
	Relay Relay

	// ConsoleLog is the file that receives the guest's console.
	ConsoleLog string
	// Idle is how long the machine runs with nobody holding it; 0: for ever.
	Idle time.Duration
	Log  *slog.Logger
}

// Network gives a machine its network card.
type Network interface {
	// Attach returns the card and how the guest sets it up. detach ends it.
	Attach() (nic *vm.NIC, uplink *proto.Uplink, detach func(), err error)
}

// Files are what a machine boots from. All fields are required.
type Files struct {
	Kernel, Initrd string // paths
	// Ready returns when the files are verified and have their content (vm.Config).
	Ready func() error
	// Release gives them back; there is nothing at the paths after it.
	Release func()
}

// Relay serves what a machine's guest connects to.
type Relay interface {
	// Serve accepts until the listener is closed, as it is when the machine
	// ends, and returns when nothing is under way any more.
	Serve(net.Listener) error
}

// State of a Machine.
type State string

// States.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
)

// Status is what `sampan machine status` shows.
type Status struct {
	State State `json:"state"`
	// Driver is the driver's own line about how the machine runs.
	Driver string `json:"driver,omitempty"`
	Pid    int    `json:"pid,omitempty"`
	Kernel string `json:"kernel,omitempty"`
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes
	// DataDisk tells the disk's file, its size and what the last boot did.
	DataDisk string `json:"dataDisk"`
	DiskSize int64  `json:"diskSize"` // bytes
	DiskDone string `json:"diskDone,omitempty"`
	// Boot is the last boot's stages, in the order they were reached.
	Boot []Stage `json:"boot,omitempty"`
	// Since is when the state was entered.
	Since time.Time `json:"since"`
	// LastError is why the machine last failed to boot or ended by itself.
	LastError string `json:"lastError,omitempty"`
	// Warnings tell what doesn't work at present; others than this package add
	// to them.
	Warnings []string `json:"warnings,omitempty"`
	// Events tells what became of the host's changes in shared folders; others
	// than this package fill it in.
	Events *share.Events `json:"events,omitempty"`
	// Guest is the guest's own account; absent when it does not run.
	Guest *proto.StatusResponse `json:"guest,omitempty"`
}

// Machine boots and stops one virtual machine. Its methods may be called from
// several goroutines.
type Machine struct {
	cfg Config

	mu      sync.Mutex
	state   State
	since   time.Time
	boot    *boot   // while starting
	guest   *Guest  // while running or stopping
	stages  *stages // of the last boot; nil before the first
	lastErr error
	holds   int
	idle    *time.Timer // fires stopIdle; only while running and not held
	closed  bool
	wg      sync.WaitGroup

	clockTick, clockPeriod time.Duration
}

// boot is one attempt that any number of callers wait for.
type boot struct {
	done   chan struct{}
	cancel context.CancelFunc
	guest  *Guest
	err    error
}

// ErrClosed is returned when the daemon is shutting down.
var ErrClosed = errors.New("the machine is being shut down")

// New returns a stopped machine.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg, state: Stopped, since: time.Now(), clockTick: clockTick, clockPeriod: clockPeriod}
}

// Guest returns the session with the guest, booting the machine if it does not
// run. Cancelling ctx ends the wait, not the boot, which others may wait for.
// It postpones the idle stop; who needs the guest for longer holds it.
func (m *Machine) Guest(ctx context.Context) (*Guest, error) {
	for {
		m.mu.Lock()
		switch {
		case m.closed:
			m.mu.Unlock()
			return nil, ErrClosed
		case m.state == Running && !m.guest.ending():
			g := m.guest
			m.restartIdle()
			m.mu.Unlock()
			return g, nil
		case m.state == Stopping, m.state == Running:
			g := m.guest
			m.mu.Unlock()
			select {
			case <-g.gone:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for the machine to stop: %w", ctx.Err())
			}
		case m.state == Stopped:
			m.startLocked()
		}
		b := m.boot
		m.mu.Unlock()
		select {
		case <-b.done:
			return b.guest, b.err
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the machine to boot: %w", ctx.Err())
		}
	}
}

// Running returns the session with the guest, or nil when the machine does not
// run. It neither boots the machine nor postpones the idle stop.
func (m *Machine) Running() *Guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != Running || m.guest.ending() {
		return nil
	}
	return m.guest
}

// Hold keeps the machine from stopping when idle until release is called.
func (m *Machine) Hold() (release func()) {
	m.mu.Lock()
	m.holds++
	m.restartIdle()
	m.mu.Unlock()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.holds--
		m.restartIdle()
		m.mu.Unlock()
	})
}

// Status tells the machine's state. It never boots the machine.
func (m *Machine) Status(ctx context.Context) Status {
	m.mu.Lock()
	s := Status{
		State: m.state, Since: m.since, CPUs: m.cfg.CPUs, Memory: m.cfg.Memory,
		DataDisk: m.cfg.DataDisk, DiskSize: m.diskSize(),
	}
	if m.stages != nil {
		s.Boot = m.stages.all()
	}
	if m.lastErr != nil {
		s.LastError = m.lastErr.Error()
	}
	g := m.guest
	m.mu.Unlock()
	if g == nil {
		return s
	}
	s.Kernel, s.DiskDone = g.Info.Kernel, g.Info.DataDisk
	if d, ok := g.vm.(vm.Describer); ok {
		s.Driver = d.Describe()
	}
	if p, ok := g.vm.(vm.Processer); ok {
		s.Pid = p.Pid()
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if st, err := g.AgentService.Status(ctx, &proto.Empty{}); err == nil {
		s.Guest = st
	}
	return s
}

// Stop powers the machine off in order, and pulls the plug when that takes too
// long or ctx ends. A stopped machine is left alone; one that is starting is
// waited for no longer than it takes to cancel the boot.
func (m *Machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	if m.state == Starting {
		b := m.boot
		m.mu.Unlock()
		b.cancel()
		<-b.done // bounded: Boot returns soon after it is cancelled
		m.mu.Lock()
	}
	g := m.guest
	if g == nil {
		m.mu.Unlock()
		return nil
	}
	first := m.state == Running
	if first {
		m.setState(Stopping)
		m.restartIdle()
	}
	m.mu.Unlock()
	if first {
		g.powerOff(ctx)
	}
	<-g.gone // bounded: powerOff pulls the plug
	return nil
}

// Close stops the machine for good.
func (m *Machine) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	err := m.Stop(ctx)
	m.wg.Wait()
	return err
}

// ConsoleLog is the path of the file with the guest's console.
func (m *Machine) ConsoleLog() string { return m.cfg.ConsoleLog }

func (m *Machine) setState(s State) {
	m.state, m.since = s, time.Now()
}

// restartIdle arms the idle timer anew, or disarms it when the machine is held
// or does not run.
func (m *Machine) restartIdle() {
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	if m.state != Running || m.holds > 0 || m.cfg.Idle <= 0 {
		return
	}
	g := m.guest
	m.idle = time.AfterFunc(m.cfg.Idle, func() { m.stopIdle(g) })
}

func (m *Machine) stopIdle(g *Guest) {
	m.mu.Lock()
	idle := m.state == Running && m.holds == 0 && m.guest == g && !m.closed
	if idle {
		m.setState(Stopping)
	}
	m.mu.Unlock()
	if !idle {
		return
	}
	m.cfg.Log.Info("machine is idle: stopping it", "after", m.cfg.Idle)
	g.powerOff(context.Background())
}

// startLocked begins a boot.
func (m *Machine) startLocked() {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	b := &boot{done: make(chan struct{}), cancel: cancel}
	m.boot = b
	m.setState(Starting)
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		defer cancel()
		g, err := m.start(ctx)
		m.mu.Lock()
		m.boot, m.lastErr = nil, err
		if err != nil {
			m.setState(Stopped)
			m.cfg.Log.Error("machine did not boot", "error", err)
		} else {
			m.guest = g
			m.setState(Running)
			m.restartIdle()
			m.wg.Add(1)
			go m.watch(g)
			m.wg.Go(func() { m.keepClock(g) })
		}
		b.guest, b.err = g, err
		close(b.done)
		m.mu.Unlock()
	}()
}

// watch waits for the end of a session and cleans up after it.
func (m *Machine) watch(g *Guest) {
	defer m.wg.Done()
	err := g.vm.Wait()
	m.mu.Lock()
	if m.state == Running { // nobody asked for it
		if err == nil {
			err = errors.New("the guest turned itself off")
		}
		err = fmt.Errorf("the machine ended by itself: %w", err)
		m.lastErr = err
		m.cfg.Log.Error(err.Error(), "console", g.console.Tail())
	}
	m.guest = nil
	m.setState(Stopped)
	m.restartIdle()
	m.mu.Unlock()
	g.end() // after the state: who sees the end finds the machine stopped
	close(g.gone)
}
