// Package fake is a vm.Driver whose machines are goroutines: for tests of what
// is above the hypervisor. Connections are memory, and behave as vsock does:
// bounded buffers, half-close, deadlines, refusal, and failure when the machine
// ends.
package fake

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/mdlayher/vsock"

	"sampan/vm"
	"sampan/vm/vhostuser/stream"
)

// guestCID is the context ID of every guest.
const guestCID = 3

// bufferSize is that of each direction of a connection.
const bufferSize = 256 << 10

// maxBacklog is how many connections wait for an Accept.
const maxBacklog = 512

// errEnded is why nothing works any more.
var errEnded = fmt.Errorf("the machine has ended: %w", net.ErrClosed)

// Driver boots machines that run a function.
type Driver struct {
	// Guest is what runs in the machine. The machine ends when it returns: by
	// itself with nil, crashed with any other error. It must return once its
	// context ends, which is how the plug is pulled. Required.
	Guest func(ctx context.Context, g Guest) error
	// Config, if set, is told what each boot was asked for.
	Config func(vm.Config)
}

// Guest is the machine as seen from inside.
type Guest struct{ m *machine }

// Listen accepts connections that the host dials.
func (g Guest) Listen(port uint32) (net.Listener, error) { return g.m.guest.listen(port) }

// Dial connects to a port of the host.
func (g Guest) Dial(port uint32) (net.Conn, error) {
	return g.m.host.connect(port, g.m.guest)
}

// Boot implements vm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	err := cfg.Validate()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, &vm.BootError{Stage: "process", Err: err}
	}
	if d.Config != nil {
		d.Config(cfg)
	}
	stage := func(name string) {
		if cfg.Stage != nil {
			cfg.Stage(name)
		}
	}
	stage("process")
	if cfg.Ready != nil {
		if err := cfg.Ready(); err != nil {
			return nil, &vm.BootError{Stage: "kernel", Err: err}
		}
	}
	stage("kernel")
	plug, pull := context.WithCancel(context.Background())
	m := &machine{pull: pull, done: make(chan struct{})}
	m.host = &side{m: m, cid: vsock.Host, listeners: map[uint32]*listener{}}
	m.guest = &side{m: m, cid: guestCID, listeners: map[uint32]*listener{}}
	m.conns = map[*conn]bool{}
	go m.run(plug, d.Guest)
	return m, nil
}

// machine is one boot. Its goroutine ends when done is closed; Stop and Wait
// wait for that.
type machine struct {
	pull        context.CancelFunc
	done        chan struct{}
	err         error // set before done is closed
	host, guest *side

	mu      sync.Mutex // of all below, and of the sides' tables
	ended   bool
	stopped bool
	conns   map[*conn]bool // both ends
}

func (m *machine) run(plug context.Context, guest func(context.Context, Guest) error) {
	err := guest(plug, Guest{m})
	m.mu.Lock()
	if m.stopped {
		err = nil
	}
	m.mu.Unlock()
	m.end()
	m.pull()
	m.err = err
	close(m.done)
}

// end cuts all connections and listeners. Idempotent.
func (m *machine) end() {
	m.mu.Lock()
	m.ended = true
	var conns []*conn
	for c := range m.conns {
		conns = append(conns, c)
	}
	var listeners []*listener
	for _, s := range []*side{m.host, m.guest} {
		for _, l := range s.listeners {
			listeners = append(listeners, l)
		}
	}
	m.mu.Unlock()
	for _, l := range listeners {
		l.shut(errEnded)
	}
	for _, c := range conns {
		c.In.EndRead(syscall.ECONNRESET)
		c.Out.EndWrite(syscall.ECONNRESET)
		m.forget(c)
	}
}

func (m *machine) forget(c *conn) {
	m.mu.Lock()
	delete(m.conns, c)
	m.mu.Unlock()
}

// Dial implements vm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: m.guest.addr(port), Err: err}
	}
	return m.guest.connect(port, m.host)
}

// Listen implements vm.Machine.
func (m *machine) Listen(port uint32) (net.Listener, error) { return m.host.listen(port) }

// Wait implements vm.Machine.
func (m *machine) Wait() error {
	<-m.done
	return m.err
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	m.pull()
	m.end()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop machine: %w", ctx.Err())
	}
}

// side is the ports of the host or of the guest.
type side struct {
	m         *machine
	cid       uint32
	listeners map[uint32]*listener
	lastPort  uint32
}

func (s *side) addr(port uint32) *vsock.Addr {
	return &vsock.Addr{ContextID: s.cid, Port: port}
}

// nextPort is called with the machine's lock held.
func (s *side) nextPort() uint32 {
	s.lastPort++
	return 1<<16 + s.lastPort
}

func (s *side) listen(port uint32) (net.Listener, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	var err error
	if port == 0 {
		port = s.nextPort()
	}
	if _, taken := s.listeners[port]; taken {
		err = syscall.EADDRINUSE
	}
	if s.m.ended {
		err = errEnded
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: s.addr(port), Err: err}
	}
	l := &listener{s: s, address: s.addr(port), backlog: make(chan *conn, maxBacklog), done: make(chan struct{})}
	s.listeners[port] = l
	return l, nil
}

// connect dials a port of s from the other side.
func (s *side) connect(port uint32, from *side) (net.Conn, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	l := s.listeners[port]
	var err error
	switch {
	case s.m.ended:
		err = errEnded
	case l == nil || len(l.backlog) == cap(l.backlog):
		err = syscall.ECONNREFUSED
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: s.addr(port), Err: err}
	}
	there, back := stream.New(bufferSize, nil), stream.New(bufferSize, nil)
	local := from.addr(from.nextPort())
	ours := &conn{m: s.m, Conn: stream.Conn{In: back, Out: there, Local: local, Remote: l.address}}
	theirs := &conn{m: s.m, Conn: stream.Conn{In: there, Out: back, Local: l.address, Remote: local}}
	s.m.conns[ours], s.m.conns[theirs] = true, true
	l.backlog <- theirs // has room: it is only filled here
	return ours, nil
}

// conn is one end of a connection.
type conn struct {
	stream.Conn
	m *machine
}

// Close is net.Conn's; what was written can still be read.
func (c *conn) Close() error {
	c.finish(net.ErrClosed)
	c.m.forget(c)
	return nil
}

// finish ends both directions; err is what this end gets from now on.
func (c *conn) finish(err error) {
	c.Out.EndWrite(err)
	c.Out.EndRead(io.EOF)
	c.In.BreakRead(err)
	c.In.EndWrite(syscall.EPIPE)
}

// CloseWrite tells the other end that nothing more comes.
func (c *conn) CloseWrite() error {
	c.Out.EndWrite(syscall.EPIPE)
	c.Out.EndRead(io.EOF)
	return nil
}

// listener is a port.
type listener struct {
	s       *side
	address *vsock.Addr
	backlog chan *conn // filled under the machine's lock while in s.listeners
	done    chan struct{}
	err     error // why Accept fails; set before done is closed
	once    sync.Once
}

// Accept is net.Listener's.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.address, Err: l.err}
}

// Addr is net.Listener's.
func (l *listener) Addr() net.Addr { return l.address }

// Close is net.Listener's; who was not accepted is reset.
func (l *listener) Close() error {
	l.shut(net.ErrClosed)
	return nil
}

func (l *listener) shut(err error) {
	l.once.Do(func() {
		l.s.m.mu.Lock()
		delete(l.s.listeners, l.address.Port)
		l.s.m.mu.Unlock()
		l.err = err
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				c.In.EndWrite(syscall.ECONNRESET)
				c.Out.EndRead(syscall.ECONNRESET)
				c.finish(net.ErrClosed)
				l.s.m.forget(c)
			default:
				return
			}
		}
	})
}

var _ vm.Driver = (*Driver)(nil)
