package vz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/Code-Hex/vz/v3"

	"sampan/vm"
)

// machine is a machine of the framework.
//
//	running  closes when it has started
//	ended    closes when the framework says that it stopped, or never started
//	done     closes when nothing of it is left
type machine struct {
	vm      *vz.VirtualMachine
	socket  *vz.VirtioSocketDevice
	handles *handles
	console *console
	log     *slog.Logger

	running, ended, done chan struct{}
	err                  error // what Wait returns; read after done

	mu       sync.Mutex
	stopping bool
	ports    map[uint32]*listener
}

var errEnded = errors.New("the machine has ended")

// newMachine builds a machine and does not start it.
func newMachine(cfg vm.Config, log *slog.Logger) (*machine, error) {
	h := &handles{}
	m, err := build(cfg, h)
	if err != nil {
		h.close()
		if h.consoleRead != nil {
			h.consoleRead.Close()
		}
		return nil, err
	}
	m.log = log
	return m, nil
}

func build(cfg vm.Config, h *handles) (*machine, error) {
	config, err := configuration(cfg, h)
	if err != nil {
		return nil, err
	}
	v, err := vz.NewVirtualMachine(config)
	if err != nil {
		return nil, err
	}
	sockets := v.SocketDevices()
	if len(sockets) != 1 {
		return nil, fmt.Errorf("the framework made %d vsock devices, want 1", len(sockets))
	}
	return &machine{
		vm: v, socket: sockets[0], handles: h,
		console: newConsole(h.consoleRead, cfg.Console),
		running: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}),
		ports: map[uint32]*listener{},
	}, nil
}

// start starts the machine and its one goroutine. The framework can't be told
// to give up starting: after an error, call abandon.
func (m *machine) start(ctx context.Context) error {
	started := make(chan error, 1)
	go m.run(started)
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run lives as long as the machine.
func (m *machine) run(started chan<- error) {
	defer close(m.done)
	err := m.vm.Start()
	if err == nil {
		close(m.running)
	}
	started <- err
	if err == nil {
		err = m.watch()
	}
	m.mu.Lock()
	if !m.stopping {
		m.err = err
	}
	m.mu.Unlock()
	close(m.ended)
	m.handles.close()
	m.console.finish()
}

// watch returns when the machine has stopped: nil when it turned itself off.
func (m *machine) watch() error {
	for state := range m.vm.StateChangedNotify() {
		switch state {
		case vz.VirtualMachineStateStopped:
			return nil
		case vz.VirtualMachineStateError:
			return errors.New("Virtualization.framework stopped the machine because of an error")
		default:
			m.log.Debug("machine state", "state", state)
		}
	}
	return errors.New("Virtualization.framework tells no more about the machine")
}

// abandon ends a machine that did not boot.
func (m *machine) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		m.log.Error("a machine that did not boot is still there", "err", err)
	}
}

// Wait implements vm.Machine.
func (m *machine) Wait() error {
	<-m.done
	return m.err
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	stop := func(err error) error { return fmt.Errorf("stop machine: %w", err) }
	select { // only a machine that runs can be stopped
	case <-m.running:
	case <-m.ended:
	case <-ctx.Done():
		return stop(context.Cause(ctx))
	}
	refused := make(chan error, 1)
	if m.vm.CanStop() {
		go func() {
			if err := m.vm.Stop(); err != nil {
				refused <- err
			}
		}()
	}
	select {
	case <-m.done:
		return nil
	case err := <-refused:
		select { // it may have ended meanwhile by itself
		case <-m.done:
			return nil
		case <-ctx.Done():
			return stop(err)
		}
	case <-ctx.Done():
		return stop(context.Cause(ctx))
	}
}

// Dial implements vm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) { return nil, fmt.Errorf("dial vsock port %d: %w", port, err) }
	select {
	case <-m.ended:
		return fail(errEnded)
	default:
	}
	type result struct {
		conn *vz.VirtioSocketConnection
		err  error
	}
	answer, unwanted := make(chan result), make(chan struct{})
	defer close(unwanted)
	go func() { // Connect knows no context, and may never return
		c, err := m.socket.Connect(port)
		select {
		case answer <- result{c, err}:
		case <-unwanted:
			if err == nil {
				c.Close()
			}
		}
	}()
	select {
	case r := <-answer:
		if r.err != nil {
			return fail(r.err)
		}
		return newConn(r.conn)
	case <-m.ended:
		return fail(errEnded)
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
}

// Describe implements vm.Describer.
func (m *machine) Describe() string { return "Virtualization.framework" }
