package main

import (
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// streamBuffer is how much a stream may hold for a reader that is slow: with
// the kernel's 256 KiB a bulk transfer waits for credit.
const streamBuffer = 1 << 20

// listenStreams listens on a vsock port for any number of streams.
func listenStreams(port uint32) (net.Listener, error) {
	fd, err := listenVsock(port)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "streams")
	defer f.Close() // FileListener duplicates it
	return vsock.FileListener(f)
}

// listenVsock returns the socket of listenStreams, without blocking mode.
func listenVsock(port uint32) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	// Accepted sockets inherit these (vm_sockets(7)). The size is capped by the
	// maximum, which has to be raised first.
	for _, opt := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
		if err := unix.SetsockoptUint64(fd, unix.AF_VSOCK, opt, streamBuffer); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return -1, fmt.Errorf("vsock port %d: %w", port, os.NewSyscallError("bind", err))
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return -1, os.NewSyscallError("listen", err)
	}
	return fd, nil
}

// dialHost connects to a vsock port of the host. It is bounded by the kernel: 2 s.
func dialHost(port uint32) (net.Conn, error) {
	conn, err := vsock.Dial(vsock.Host, port, nil)
	if err != nil {
		return nil, err // never a nil *vsock.Conn in the interface
	}
	return conn, nil
}

// listener is a net.Listener of one connection that exists already.
type listener struct {
	next chan net.Conn
	addr net.Addr
	lost chan struct{} // closed with the connection
	stop func()
	end  chan struct{} // closed with the listener
}

func newListener(conn net.Conn) *listener {
	l := &listener{next: make(chan net.Conn, 1), addr: conn.LocalAddr(), lost: make(chan struct{}), end: make(chan struct{})}
	l.stop = sync.OnceFunc(func() { close(l.end) })
	l.next <- &watched{Conn: conn, closed: sync.OnceFunc(func() { close(l.lost) })}
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error { l.stop(); return nil }

func (l *listener) Addr() net.Addr { return l.addr }

// watched tells when a connection is closed; the server does it when the other
// side is gone.
type watched struct {
	net.Conn
	closed func()
}

func (w *watched) Close() error {
	w.closed()
	return w.Conn.Close()
}
