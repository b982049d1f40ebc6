package vz

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"syscall"
	"unsafe"

	"github.com/Code-Hex/vz/v3"
)

// hostCID and guestCID are the framework's vsock addresses.
const (
	hostCID  = 2
	guestCID = 3
)

// conn is a vsock connection: on the host's side it is a UNIX socket, whose
// half-close the framework carries to the guest.
type conn struct {
	*net.UnixConn
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// newConn takes c over. The library keeps the socket in a field of its own and
// offers no CloseWrite, so the field is read here; TestTypeCheckField fails
// when a new version of the library calls it otherwise.
func newConn(c *vz.VirtioSocketConnection) (net.Conn, error) {
	field := reflect.ValueOf(c).Elem().FieldByName("rawConn")
	if !field.IsValid() {
		c.Close()
		return nil, errors.New("vsock connection: the library hides its socket elsewhere")
	}
	raw := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Interface()
	socket, ok := raw.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("vsock connection is a %T, want a UNIX socket", raw)
	}
	return &conn{
		UnixConn: socket,
		local:    &vz.VirtioSocketListenerAddr{CID: hostCID, Port: c.SourcePort()},
		remote:   &vz.VirtioSocketListenerAddr{CID: guestCID, Port: c.DestinationPort()},
	}, nil
}

// listener wraps the library's, whose Accept is not woken by Close: its pump
// stays parked in that Accept for as long as the program runs.
type listener struct {
	m      *machine
	port   uint32
	inner  *vz.VirtioSocketListener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen implements vm.Machine.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	select {
	case <-m.ended:
		return fail(errEnded)
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ports[port] != nil { // the framework would replace it silently
		return fail(syscall.EADDRINUSE)
	}
	inner, err := m.socket.Listen(port)
	if err != nil {
		return fail(err)
	}
	l := &listener{m: m, port: port, inner: inner, conns: make(chan net.Conn), closed: make(chan struct{})}
	m.ports[port] = l
	go l.pump()
	return l, nil
}

func (l *listener) pump() {
	for {
		raw, err := l.inner.AcceptVirtioSocketConnection()
		if err != nil {
			l.m.log.Warn("accept vsock connection", "port", l.port, "err", err)
			continue
		}
		c, err := newConn(raw)
		if err != nil {
			l.m.log.Error("accept vsock connection", "port", l.port, "err", err)
			continue
		}
		select {
		case l.conns <- c:
		case <-l.closed:
			c.Close()
		case <-l.m.ended:
			c.Close()
			return
		}
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
	case <-l.m.ended:
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.Addr(), Err: net.ErrClosed}
}

// Close implements net.Listener. Closing again does nothing.
func (l *listener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		l.m.mu.Lock()
		delete(l.m.ports, l.port)
		l.m.mu.Unlock()
		err = l.inner.Close()
	})
	return err
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.inner.Addr() }
