package network

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpSocket is a listener for TCP connections.
type tcpSocket struct{ *net.TCPListener }

// listenTCP opens one listener, for both families where none is named.
func listenTCP(spec Spec) (socket, error) {
	network, addr := address(spec)
	ln, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	return tcpSocket{ln.(*net.TCPListener)}, nil
}

// Addrs implements socket.
func (s tcpSocket) Addrs() []netip.AddrPort {
	a := s.Addr().(*net.TCPAddr).AddrPort()
	if !a.Addr().Is6() || !a.Addr().IsUnspecified() || s.only6() {
		return []netip.AddrPort{a}
	}
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port()), a}
}

// only6 says whether the listener is for IPv6 alone.
func (s tcpSocket) only6() bool {
	only := false
	if rc, err := s.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY)
			only = err == nil && v != 0
		})
	}
	return only
}

// Serve implements socket.
func (s tcpSocket) Serve(p *Port) error {
	for {
		conn, err := s.AcceptTCP()
		switch {
		case err == nil:
			p.works(listening)
			p.wg.Go(func() { p.forward(conn) })
		case p.ctx.Err() != nil:
			return err
		case errors.Is(err, syscall.ECONNABORTED):
		case exhausted(err):
			p.failed(listening, err)
			p.pause(restartMin)
		default:
			return err
		}
	}
}

// forward carries one connection. The client sees a reset when the container
// can't be reached, as from a closed port.
func (p *Port) forward(client *net.TCPConn) {
	container, err := p.dial(p.ctx)
	if err == nil && p.spec.ProxyProtocol {
		if _, err = container.Write(proxyHeader(addrPort(client.RemoteAddr()), addrPort(client.LocalAddr()))); err != nil {
			container.Close()
		}
	}
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

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// errAborted says that the container's end was none in order.
var errAborted = errors.New("the connection was reset")

// pair is a client's connection and the one to the container that belongs to it.
type pair struct {
	client    *net.TCPConn
	container net.Conn

	mu    sync.Mutex
	ended bool // container.CloseWrite was called
}

// relay copies both ways until both directions have ended, passing on each
// half-close, and closes both. An error in one direction ends both at once: the
// other side then sees a reset, not an orderly end.
//
// A vsock connection knows no reset. The convention with the agent is that only
// a connection whose directions have both been ended by CloseWrite is closed in
// order; one that is closed as a whole before was reset. Who reads its end finds
// that out by writing nothing.
func relay(client *net.TCPConn, container net.Conn) {
	p := &pair{client: client, container: container}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := copyFrom(container, client); err != nil || p.endRequest() != nil {
			p.reset()
		}
	})
	if err := copyTo(client, container); err != nil || p.endAnswer() != nil {
		p.reset()
	}
	wg.Wait()
	client.Close()
	container.Close()
}

// endRequest passes on that the client has sent everything.
func (p *pair) endRequest() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if cw, ok := p.container.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// endAnswer passes on that the container has sent everything, or that it has
// hung up.
func (p *pair) endAnswer() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		if _, err := p.container.Write(nil); err != nil {
			return errAborted
		}
	}
	return p.client.CloseWrite()
}

func (p *pair) reset() {
	p.client.SetLinger(0)
	p.client.Close()
	p.container.Close()
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// copyFrom copies what the client sends, with a buffer only while there is
// something: a thousand idle connections hold none.
func copyFrom(dst io.Writer, src *net.TCPConn) error {
	rc, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var (
			buf  *[]byte
			n    int
			rerr error
		)
		err := rc.Read(func(fd uintptr) bool {
			buf = buffers.Get().(*[]byte)
			for {
				if n, rerr = unix.Read(int(fd), *buf); rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				buffers.Put(buf)
				buf = nil
			}
			return rerr != unix.EAGAIN
		})
		if buf == nil {
			return err
		}
		if err = cmp.Or(err, rerr); err == nil && n > 0 {
			_, err = dst.Write((*buf)[:n])
		}
		buffers.Put(buf)
		if err != nil || n <= 0 {
			return err
		}
	}
}

// smallBuffer is what a connection holds while it waits for the container.
const smallBuffer = 4 << 10

// copyTo copies until the end of src: with a small buffer while little comes,
// with a large one as long as much does.
func copyTo(dst io.Writer, src io.Reader) error {
	small := make([]byte, smallBuffer)
	for {
		n, err := copyOnce(dst, src, small)
		if err == nil && n == len(small) {
			large := buffers.Get().(*[]byte)
			for err == nil && n >= len(small) {
				n, err = copyOnce(dst, src, *large)
			}
			buffers.Put(large)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func copyOnce(dst io.Writer, src io.Reader, buf []byte) (int, error) {
	n, err := src.Read(buf)
	if n > 0 {
		if _, werr := dst.Write(buf[:n]); werr != nil {
			return n, werr
		}
	}
	return n, err
}
