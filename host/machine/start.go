package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"sampan/kernel"
	"sampan/proto"
	"sampan/vm"
)

// errCrashed is wrapped when the guest's kernel died before its agent called.
var errCrashed = errors.New("the machine ended")

// start boots the machine and returns the session with its agent. A guest that
// crashes before its agent calls gets a second chance: under QEMU's emulation
// one boot in some thirty dies while the kernel patches its own code.
func (m *Machine) start(ctx context.Context) (*Guest, error) {
	g, err := m.attempt(ctx)
	if errors.Is(err, errCrashed) && ctx.Err() == nil {
		m.cfg.Log.Warn("booting once more", "error", err)
		g, err = m.attempt(ctx)
	}
	return g, err
}

// attempt boots once. On failure nothing is left running.
func (m *Machine) attempt(ctx context.Context) (_ *Guest, err error) {
	st := &stages{begin: time.Now()}
	m.mu.Lock()
	m.stages = st
	m.mu.Unlock()
	files, err := m.cfg.Kernel()
	if err != nil {
		return nil, err
	}
	defer files.Release()
	ready := sync.OnceValue(func() error {
		err := files.Ready()
		if err == nil {
			st.reached("verified")
		}
		return err
	})
	if err := m.ensureDisk(); err != nil {
		return nil, err
	}
	st.reached("bundle")
	console, err := openConsole(m.cfg.ConsoleLog)
	if err != nil {
		return nil, err
	}
	g := &Guest{console: console, stages: st, done: make(chan struct{}), hungUp: make(chan struct{}), gone: make(chan struct{})}
	defer func() {
		if err != nil {
			g.end()
		}
	}()
	cfg := vm.Config{
		Kernel: files.Kernel, Initrd: files.Initrd, Ready: ready, Cmdline: kernel.Cmdline, CPUs: m.cfg.CPUs, Memory: m.cfg.Memory,
		Disks:   []vm.Disk{{Path: m.cfg.DataDisk, Serial: proto.DataDiskSerial}},
		Shares:  m.cfg.Shares,
		Console: console, Stage: st.reached, Log: m.cfg.Log,
	}
	var uplink *proto.Uplink
	if m.cfg.Network != nil {
		cfg.NIC, uplink, g.detach, err = m.cfg.Network.Attach()
		if err != nil {
			return nil, fmt.Errorf("attach network: %w", err)
		}
		defer cfg.NIC.File.Close()
		g.countFrom(m.cfg.Network)
	}
	g.vm, err = m.cfg.Driver.Boot(ctx, cfg)
	if err != nil {
		return nil, cmp.Or(files.Ready(), err) // files that are no good explain what a driver says of them
	}
	defer func() {
		if err != nil {
			g.vm.Stop(context.Background())
		}
	}()
	if err := m.relay(g); err != nil {
		return nil, err
	}
	if err := m.meet(ctx, g, uplink); err != nil {
		return nil, err
	}
	return g, nil
}

// relay begins to serve the guest's connections to sockets of this host.
func (m *Machine) relay(g *Guest) error {
	if m.cfg.Relay == nil {
		return nil
	}
	ln, err := g.vm.Listen(proto.PortRelay)
	if errors.Is(err, net.ErrClosed) {
		return nil // the machine has ended: meet tells why
	}
	if err != nil {
		return fmt.Errorf("listen for connections to sockets: %w", err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		err := m.cfg.Relay.Serve(ln)
		ln.Close()
		if !errors.Is(err, net.ErrClosed) {
			m.cfg.Log.Error("containers can't connect to sockets of this host any more", "error", err)
		}
	}()
	g.relay = func() { ln.Close(); <-served }
	return nil
}

// meet waits for the agent's call and configures the guest.
func (m *Machine) meet(ctx context.Context, g *Guest, uplink *proto.Uplink) error {
	fail := func(name string, err error) error {
		return &vm.BootError{Stage: name, After: time.Since(g.stages.begin), Console: g.console.Tail(), Err: err}
	}
	conn, err := acceptAgent(ctx, g.vm)
	if err != nil {
		return fail("agent", err)
	}
	g.stages.reached("agent")
	g.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(g.lost))
	g.AgentService = proto.NewAgentClient(g.client)
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	g.Info, err = g.Configure(cctx, &proto.ConfigureRequest{
		Version: proto.Version, TimeUnixNano: time.Now().UnixNano(),
		Uplink: uplink, Hostname: "sampan",
	})
	if err != nil {
		return fail("configure", err)
	}
	if g.Info.Version != proto.Version {
		return fail("configure", fmt.Errorf("the guest speaks version %d of the protocol, this daemon %d: make the guest bundle again (make guest)", g.Info.Version, proto.Version))
	}
	g.stages.addGuest(g.Info.Stages)
	g.stages.reached("configured")
	return nil
}

// acceptAgent waits for the agent's connection, the machine's end, or the
// deadline.
func acceptAgent(ctx context.Context, machine vm.Machine) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	// The reason of a machine that has ended says more than the failed call's.
	ended := func() error {
		if err := machine.Wait(); err != nil {
			return fmt.Errorf("%w: %w", errCrashed, err)
		}
		return errors.New("the guest turned itself off")
	}
	ln, err := machine.Listen(proto.PortControl)
	if errors.Is(err, net.ErrClosed) {
		return nil, ended()
	} else if err != nil {
		return nil, err
	}
	type accepted struct {
		conn net.Conn
		err  error
	}
	ch := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept() // ends with ln, and with the machine
		ch <- accepted{conn, err}
	}()
	select {
	case a := <-ch:
		ln.Close()
		if a.err != nil {
			return nil, ended()
		}
		return a.conn, nil
	case <-ctx.Done():
		ln.Close()
		if a := <-ch; a.conn != nil {
			a.conn.Close()
		}
		return nil, fmt.Errorf("no call from the guest's agent: %w", ctx.Err())
	}
}
