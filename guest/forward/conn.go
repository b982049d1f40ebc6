package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// keepIdle is after how many seconds without a byte the kernel asks whether the
// other end is still there, as Go's net package has it.
const keepIdle = 15

type stage int

const (
	header   stage = iota // the stream's first line has not come
	dialling              // the target has not accepted
	carrying              // bytes go both ways
	closed
)

// conn is a stream of the host and the connection that it stands for.
type conn struct {
	stage    stage
	deadline time.Time // of header and dialling

	line    []byte        // of the header, so far
	address unix.Sockaddr // to dial
	early   []byte        // came behind the header

	stream, target side
}

// side is one end of a conn.
type side struct {
	conn    *conn
	fd      int    // target's: -1 until it is dialled
	watched uint32 // what epoll tells of it; 0: nothing
	out     []byte // waits to be written to it
	ended   bool   // all that it sent has been read
	shut    bool   // it has been told that no more comes
}

// other is where what s sends goes.
func (s *side) other() *side {
	if s == &s.conn.stream {
		return &s.conn.target
	}
	return &s.conn.stream
}

// readable says whether there is room for more of what s sends.
func (s *side) readable() bool { return !s.ended && len(s.other().out) == 0 }

// wish is what s waits for, as epoll has it.
func (s *side) wish() uint32 {
	c := s.conn
	var events uint32
	switch {
	case c.stage == header && s == &c.stream:
		events = unix.EPOLLIN
	case c.stage == dialling && s == &c.target:
		events = unix.EPOLLOUT
	case c.stage == carrying:
		if s.readable() {
			events |= unix.EPOLLIN
		}
		if len(s.out) > 0 {
			events |= unix.EPOLLOUT
		}
	}
	return events
}

// readHeader takes what has come of the first line, and dials when that is all.
func (l *loop) readHeader(c *conn) {
	n, err := unix.Read(c.stream.fd, l.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil || n == 0: // hung up
		l.reset(c)
		return
	}
	c.line = append(c.line, l.buf[:n]...)
	end := bytes.IndexByte(c.line, '\n')
	if end < 0 && len(c.line) < proto.MaxHeader {
		return
	}
	c.early = c.line[end+1:]
	h, err := proto.ReadHeader(bytes.NewReader(c.line))
	c.line = nil
	if err == nil {
		err = l.prepare(c, h)
	}
	if err != nil {
		l.log.Warn("stream: " + err.Error())
		l.reset(c)
		return
	}
	c.stage, c.deadline = dialling, time.Now().Add(l.dialWait)
	l.dial(c)
}

// prepare makes the target's socket.
func (l *loop) prepare(c *conn, h proto.StreamHeader) error {
	if h.Kind != proto.StreamDial || h.Network != "tcp" {
		return fmt.Errorf("a stream of the kind %q and network %q is not for forwarding", h.Kind, h.Network)
	}
	to, err := netip.ParseAddrPort(h.Address)
	if err != nil || to.Addr().Zone() != "" {
		return fmt.Errorf("dial %s: not an IP address with a port", h.Address)
	}
	family, ip := unix.AF_INET6, to.Addr().Unmap()
	if ip.Is4() {
		family = unix.AF_INET
		c.address = &unix.SockaddrInet4{Port: int(to.Port()), Addr: ip.As4()}
	} else {
		c.address = &unix.SockaddrInet6{Port: int(to.Port()), Addr: ip.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("dial %s: %w", h.Address, err)
	}
	c.target.fd = fd
	l.sides[int32(fd)] = &c.target
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle))
}

// dial begins to connect, or sees what came of it. A container of the same
// machine has mostly accepted when the first call returns, and the next one
// knows (connect(2) of a socket that is connecting).
func (l *loop) dial(c *conn) {
	err := unix.Connect(c.target.fd, c.address)
	if err == unix.EINPROGRESS {
		err = unix.Connect(c.target.fd, c.address)
	}
	switch err {
	case nil, unix.EISCONN:
	case unix.EALREADY, unix.EINTR:
		return
	default: // nobody listens
		l.reset(c)
		return
	}
	delete(l.young, c)
	c.stage = carrying
	early := c.early
	c.early, c.address = nil, nil
	if l.send(&c.stream, []byte{proto.DialOK}) && len(early) > 0 {
		l.send(&c.target, early)
	}
}

// pump moves what s has sent, once.
func (l *loop) pump(s *side) {
	n, err := unix.Read(s.fd, l.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case err != nil:
		l.reset(s.conn)
	case n == 0:
		s.ended = true
		l.pass(s)
	default:
		l.send(s.other(), l.buf[:n])
	}
}

// send writes to a side without waiting data, and keeps what does not fit; false
// after an error, which has ended the connection.
func (l *loop) send(s *side, b []byte) bool {
	n, err := unix.Write(s.fd, b)
	if err != nil {
		if err != unix.EAGAIN && err != unix.EINTR {
			l.reset(s.conn)
			return false
		}
		n = 0
	}
	if n < len(b) {
		s.out = append(s.out, b[n:]...)
	}
	return true
}

// flush writes what waits, and passes on the end behind it.
func (l *loop) flush(s *side) {
	b := s.out
	s.out = nil
	if l.send(s, b) && len(s.out) == 0 && s.other().ended {
		l.pass(s.other())
	}
}

// pass tells the other side that s has ended, and ends a connection of which both
// have. A host that has hung up for good looks like one that has sent everything
// until it is written to: nothing is, which fails.
func (l *loop) pass(s *side) {
	c, to := s.conn, s.other()
	if s == &c.stream && !c.stream.shut {
		if unix.Send(c.stream.fd, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) != nil {
			l.reset(c)
			return
		}
	}
	if unix.Shutdown(to.fd, unix.SHUT_WR) != nil {
		l.reset(c)
		return
	}
	to.shut = true
	if c.stream.shut && c.target.shut {
		l.end(c)
	}
}
