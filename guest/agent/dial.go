package agent

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// dial connects the stream to an address of the guest's network and carries
// datagrams until the stream ends. (Connections are sampan/guest/forward's.)
func dial(stream net.Conn, netw, address string) error {
	defer stream.Close()
	if netw != "udp" {
		return fmt.Errorf("dial %s: not supported", netw)
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s: not an IP address with a port", address)
	}
	conn, err := net.DialUDP(netw, nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil // that nobody can be reached is the host's to tell
	}
	defer conn.Close()
	if _, err := stream.Write([]byte{proto.DialOK}); err != nil {
		return nil // the client has hung up already
	}
	datagrams(stream, conn)
	return nil
}

// duplex is a connection that can be copied and half-closed.
type duplex interface {
	net.Conn
	syscallConn
	closeWriter
}

// proxied is a stream and the connection that it stands for.
type proxied struct {
	stream duplex
	conn   duplex

	mu    sync.Mutex
	ended bool // stream.CloseWrite was called
}

// proxy copies both ways, passing half-closes on. An error in one direction
// ends both: a TCP side then sees a reset, and so does the host's, since a
// stream that is closed before both its directions were ended was reset.
func proxy(stream, conn duplex) {
	p := &proxied{stream: stream, conn: conn}
	var wg sync.WaitGroup
	wg.Go(func() {
		if copyAll(conn, stream) != nil || p.endRequest() != nil {
			p.reset()
		}
	})
	if copyAll(stream, conn) != nil || p.endAnswer() != nil {
		p.reset()
	}
	wg.Wait()
}

// endRequest passes on that the host has sent everything, or that it has hung
// up: then a write fails.
func (p *proxied) endRequest() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		if err := writable(p.stream); err != nil {
			return err
		}
	}
	return p.conn.CloseWrite()
}

func (p *proxied) endAnswer() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	return p.stream.CloseWrite()
}

func (p *proxied) reset() {
	if tcp, ok := p.conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	p.conn.Close()
	p.stream.Close()
}

// writable writes nothing.
func writable(conn syscallConn) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = unix.Send(int(fd), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) })
	return errors.Join(cerr, err)
}

// datagrams carries datagrams both ways until the stream ends, which is the
// host's to decide. What nobody receives is lost, as datagrams are.
func datagrams(stream net.Conn, conn *net.UDPConn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer conn.Close()
		r, buf := bufio.NewReader(stream), make([]byte, 0, 2048)
		for {
			var err error
			if buf, err = proto.ReadDatagram(r, buf); err != nil {
				return
			}
			conn.Write(buf)
		}
	})
	rc, err := conn.SyscallConn()
	for err == nil {
		var (
			buf  *[]byte
			n    int
			rerr error
		)
		// As in lazyReader: a thousand idle flows hold no buffers.
		err = rc.Read(func(fd uintptr) bool {
			buf = buffers.Get().(*[]byte)
			n, rerr = unix.Read(int(fd), (*buf)[proto.DatagramHeader:])
			if rerr == unix.EAGAIN {
				buffers.Put(buf)
				buf = nil
			}
			return rerr != unix.EAGAIN
		})
		if buf == nil {
			break
		}
		// Another error is an answer to an earlier datagram: nobody listens yet.
		if err == nil && rerr == nil {
			_, err = stream.Write(proto.AppendDatagram((*buf)[:0], (*buf)[proto.DatagramHeader:][:n]))
		}
		buffers.Put(buf)
	}
	stream.Close()
	wg.Wait()
}
