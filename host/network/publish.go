package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"sampan/vm"
)

// ErrInUse is wrapped by errors about a host port that somebody else holds.
var ErrInUse = errors.New("port is already allocated")

// dialTimeout bounds the way from an accepted connection to the container.
const dialTimeout = 30 * time.Second

// Spec is a port to publish.
type Spec struct {
	Proto    string // "tcp"
	HostIP   string // IP address; empty: every address, IPv4 and IPv6
	HostPort int    // 0: any free port
	// Dial connects to the container. The connection should have CloseWrite.
	Dial func(context.Context) (net.Conn, error)
	Log  *slog.Logger
}

// Port is a published port.
type Port struct {
	spec Spec
	ln   net.Listener

	ctx    context.Context // of the port's whole life; ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Publish listens on a host port and forwards each of its connections until
// Close. The error for a port that is taken wraps ErrInUse and is worded as
// Docker's.
func Publish(spec Spec) (*Port, error) {
	if spec.Proto != "tcp" {
		return nil, fmt.Errorf("publish %s port %d: %w", spec.Proto, spec.HostPort, vm.ErrUnsupported)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(spec.HostIP, strconv.Itoa(spec.HostPort)))
	if err != nil {
		ip := spec.HostIP
		if ip == "" {
			ip = "0.0.0.0"
		}
		where := net.JoinHostPort(ip, strconv.Itoa(spec.HostPort))
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("Bind for %s failed: %w", where, ErrInUse)
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("bind for %s failed: this system lets only root listen below port %d: choose a higher port, or run sysctl net.ipv4.ip_unprivileged_port_start=%d: %w", where, 1024, spec.HostPort, err)
		}
		return nil, fmt.Errorf("bind for %s failed: %w", where, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Port{spec: spec, ln: ln, ctx: ctx, cancel: cancel}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the port listens.
func (p *Port) Addr() *net.TCPAddr { return p.ln.Addr().(*net.TCPAddr) }

// Close stops listening, resets the open connections and waits for their end.
// Idempotent.
func (p *Port) Close() error {
	p.cancel()
	err := p.ln.Close()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Port) accept() {
	for {
		conn, err := p.ln.Accept()
		switch {
		case err == nil:
			p.wg.Go(func() { p.forward(conn.(*net.TCPConn)) })
		case p.ctx.Err() != nil:
			return
		default:
			// Out of descriptors, most likely: the next attempt may do.
			p.spec.Log.Warn("published port: accept", "port", p.Addr().String(), "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-p.ctx.Done():
				return
			}
		}
	}
}

// forward carries one connection. The client sees a reset when the container
// can't be reached, as from a closed port.
func (p *Port) forward(client *net.TCPConn) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	container, err := p.spec.Dial(ctx)
	cancel()
	if err != nil {
		client.SetLinger(0)
		client.Close()
		return
	}
	stop := context.AfterFunc(p.ctx, func() {
		client.SetLinger(0)
		client.Close()
		container.Close()
	})
	defer stop()
	relay(client, container)
}

// closeWriter is the half-close of net.TCPConn, net.UnixConn and vsock.
type closeWriter interface{ CloseWrite() error }

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// relay copies both ways until both directions have ended, passing on each
// half-close, and closes both. An error in one direction ends both at once; the
// client then sees a reset, not an orderly end.
func relay(client *net.TCPConn, container net.Conn) {
	fail := func() {
		client.SetLinger(0)
		client.Close()
		container.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := copyHalf(container, client); err != nil {
			fail()
		}
	})
	if err := copyHalf(client, container); err != nil {
		fail()
	}
	wg.Wait()
	client.Close()
	container.Close()
}

// copyHalf copies src to dst, then closes dst for writing.
func copyHalf(dst, src net.Conn) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// Hidden from io.Copy: ReadFrom of a TCP connection would allocate a buffer
	// of its own when it can't splice.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf); err != nil {
		return err
	}
	if cw, ok := dst.(closeWriter); ok {
		return cw.CloseWrite()
	}
	return nil
}
