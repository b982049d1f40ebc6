package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// vsockDevice is the host's side of the guest's vsock device.
type vsockDevice interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Listen(port uint32) (net.Listener, error)
	Close() error
}

// backend serves one vhost-user device.
type backend struct {
	name  string
	conn  *net.UnixConn
	serve func(*net.UnixConn) error // returns when conn ends
}

// machine is a running QEMU with its backends.
//
// Its end has one order, driven by supervise: QEMU is gone (by itself, or
// killed by Stop or a lost backend), the vsock device fails all calls, the
// backends and readers return since their sockets ended, done closes.
type machine struct {
	proc     *process
	mon      *monitor
	vsock    vsockDevice
	console  *console
	describe string
	log      *slog.Logger

	serving sync.WaitGroup // backends and the console's reader
	done    chan struct{}
	err     error // what Wait returns; read after done

	mu       sync.Mutex
	stopping bool
	reason   string // of QEMU's SHUTDOWN event
	broken   error  // the first backend that ended before QEMU
}

const (
	// quitLimit is how long QEMU may take to flush its disks when stopped.
	quitLimit = 3 * time.Second
	// lagLimit is how much later than a device's socket QEMU may end, and how
	// long a backend may work on after QEMU's end.
	lagLimit = 5 * time.Second
)

// serve runs a backend. QEMU can't live without it, so its early end is the
// machine's.
func (m *machine) serve(b backend) {
	m.serving.Go(func() {
		defer b.conn.Close()
		err := b.serve(b.conn)
		lag := time.NewTimer(lagLimit)
		defer lag.Stop()
		if err == nil {
			// QEMU closed the socket: it is ending, or something is odd.
			select {
			case <-m.proc.done:
				return
			case <-lag.C:
			}
		}
		m.mu.Lock()
		if m.broken == nil {
			m.broken = fmt.Errorf("device %s ended: %w", b.name, errors.Join(err, errLost))
		}
		m.mu.Unlock()
		m.proc.kill()
	})
}

var errLost = errors.New("QEMU can't do without it")

// supervise waits for QEMU's end and clears up.
func (m *machine) supervise() {
	<-m.proc.done
	m.vsock.Close()
	served := make(chan struct{})
	go func() { m.serving.Wait(); close(served) }()
	select {
	case <-served:
	case <-time.After(lagLimit):
		// A file server may hang in a host's file system.
		m.log.Warn("a device's backend still works after the machine's end")
	}
	if m.mon != nil {
		<-m.mon.done
	}
	m.err = m.verdict()
	close(m.done)
}

// verdict says why the machine ended.
func (m *machine) verdict() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	sig := m.proc.signaled()
	switch {
	case m.stopping:
		return nil
	case m.broken != nil:
		return m.broken
	case sig != 0:
		return fmt.Errorf("QEMU was ended by signal %d (%s)", sig, sig)
	case m.proc.err != nil:
		return fmt.Errorf("QEMU failed: %w: %s", m.proc.err, m.proc.output)
	case m.reason == "guest-shutdown":
		return nil
	case m.reason == "guest-reset" || m.reason == "guest-panic":
		return errors.New("the guest crashed or reset itself")
	}
	return fmt.Errorf("QEMU ended unasked (%s)", m.reason)
}

// event notes what QEMU tells.
func (m *machine) event(e event) {
	switch e.Name {
	case "SHUTDOWN":
		m.mu.Lock()
		m.reason = e.Data.Reason
		m.mu.Unlock()
	case "BLOCK_IO_ERROR":
		m.log.Error("the host's disk failed the guest", "disk", e.Data.Node, "reason", e.Data.Reason, "action", e.Data.Action)
	case "GUEST_PANICKED":
		m.log.Error("the guest's kernel panicked", "action", e.Data.Action)
	case "STOP":
		m.log.Warn("QEMU paused the guest")
	default:
		m.log.Debug("QEMU event", "name", e.Name)
	}
}

// Dial implements vm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.vsock.Dial(ctx, port)
}

// Listen implements vm.Machine.
func (m *machine) Listen(port uint32) (net.Listener, error) { return m.vsock.Listen(port) }

// Wait implements vm.Machine.
func (m *machine) Wait() error {
	<-m.done
	return m.err
}

// Stop implements vm.Machine. When ctx ends first, QEMU is killed all the
// same, and the error is ctx's.
func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	m.quit(ctx)
	m.proc.kill()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop QEMU: %w", context.Cause(ctx))
	}
}

// quit asks QEMU to end, and returns when it has or won't.
func (m *machine) quit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	if m.mon == nil {
		return
	}
	// No answer is no failure: QEMU may be gone before it is read.
	if _, err := m.mon.execute(ctx, "quit"); err != nil && !errors.Is(err, errMonitorClosed) {
		return
	}
	select {
	case <-m.proc.done:
	case <-ctx.Done():
	}
}

// Describe implements vm.Describer.
func (m *machine) Describe() string { return m.describe }

// Pid implements vm.Processer.
func (m *machine) Pid() int { return m.proc.os.Pid }
