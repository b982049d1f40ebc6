package forward

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is what one vsock write moves well.
	bufferSize = 128 << 10
	// tick is how exactly the waits are kept.
	tick = time.Second
	// acceptPause is how long a loop rests when there is no descriptor left for
	// the next stream.
	acceptPause = 100 * time.Millisecond
)

// loop is one thread's connections.
type loop struct {
	*Forwarder
	epoll, listener, stop int

	sides map[int32]*side    // by descriptor
	young map[*conn]struct{} // those that don't carry yet
	swept time.Time          // when young was last looked at
	rest  time.Time          // until when no stream is accepted; zero: they are
	stuck bool               // no stream was accepted since the last pause
	buf   []byte
}

func newLoop(f *Forwarder, listener, stop int) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	l := &loop{
		Forwarder: f, epoll: epoll, listener: listener, stop: stop,
		sides: map[int32]*side{}, young: map[*conn]struct{}{}, buf: make([]byte, bufferSize),
	}
	if err := errors.Join(l.control(unix.EPOLL_CTL_ADD, stop, unix.EPOLLIN), l.listen()); err != nil {
		unix.Close(epoll)
		return nil, err
	}
	return l, nil
}

// listen has one of the loops that wait, and not each, woken by a stream.
func (l *loop) listen() error {
	return l.control(unix.EPOLL_CTL_ADD, l.listener, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
}

func (l *loop) control(op, fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}

// run serves until stop can be read.
func (l *loop) run() error {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(l.epoll, events, l.timeout())
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for _, e := range events[:max(n, 0)] {
			switch int(e.Fd) {
			case l.stop:
				return nil
			case l.listener:
				l.accept()
			default:
				// A descriptor closed by an earlier event of these, and perhaps
				// another's already: what is ready is asked of the kernel again.
				if s := l.sides[e.Fd]; s != nil {
					l.ready(s)
				}
			}
		}
		l.sweep()
	}
}

// timeout is for epoll_wait, in milliseconds.
func (l *loop) timeout() int {
	switch {
	case !l.rest.IsZero():
		return int(acceptPause / time.Millisecond)
	case len(l.young) > 0:
		return int(tick / time.Millisecond)
	}
	return -1
}

// sweep ends what takes too long, and a pause that is over.
func (l *loop) sweep() {
	if l.rest.IsZero() && len(l.young) == 0 {
		return
	}
	now := time.Now()
	if !l.rest.IsZero() && now.After(l.rest) {
		l.rest = time.Time{}
		if err := l.listen(); err != nil {
			l.pause(err)
		}
	}
	if now.Sub(l.swept) < tick {
		return
	}
	l.swept = now
	for c := range l.young {
		if now.After(c.deadline) {
			if c.stage == header {
				l.log.Warn("stream: no header in time")
			}
			l.reset(c)
		}
	}
}

// accept takes one stream, and has the next loop in line take the next one: of
// those that wait the kernel wakes the first, which would get all that come in
// quiet times.
func (l *loop) accept() {
	fd, _, err := unix.Accept4(l.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR || err == unix.ECONNABORTED {
		return // another loop was faster, or it has gone
	}
	l.control(unix.EPOLL_CTL_DEL, l.listener, 0) // it is watched: it was ready
	if err != nil {                              // nothing is left of something
		l.pause(err)
		return
	}
	if l.stuck {
		l.stuck = false
		l.log.Info("streams are accepted again")
	}
	c := &conn{stage: header, deadline: time.Now().Add(l.headerWait)}
	c.stream, c.target = side{conn: c, fd: fd}, side{conn: c, fd: -1}
	l.sides[int32(fd)] = &c.stream
	l.young[c] = struct{}{}
	l.watch(c)
	if err := l.listen(); err != nil {
		l.pause(err)
	}
}

// pause has no stream accepted for a while, and says so once.
func (l *loop) pause(err error) {
	if !l.stuck {
		l.stuck = true
		l.log.Warn("accept streams: it is tried again", "error", err)
	}
	l.rest = time.Now().Add(acceptPause)
}

// ready does what can be done at a side.
func (l *loop) ready(s *side) {
	c := s.conn
	switch c.stage {
	case header:
		l.readHeader(c)
	case dialling:
		l.dial(c)
	case carrying:
		if len(s.out) > 0 {
			l.flush(s)
		}
		if c.stage == carrying && s.readable() {
			l.pump(s)
		}
	}
	l.watch(c)
}

// watch has epoll tell what c waits for. A side without a wish is not watched
// at all, since epoll would tell of its end again and again.
func (l *loop) watch(c *conn) {
	if c.stage == closed {
		return
	}
	for _, s := range []*side{&c.stream, &c.target} {
		want, op := s.wish(), unix.EPOLL_CTL_MOD
		switch {
		case want == s.watched:
			continue
		case s.watched == 0:
			op = unix.EPOLL_CTL_ADD
		case want == 0:
			op = unix.EPOLL_CTL_DEL
		}
		if err := l.control(op, s.fd, want); err != nil {
			l.log.Warn(fmt.Sprintf("stream: %v", err))
			l.reset(c)
			return
		}
		s.watched = want
	}
}

// reset ends both sides at once: one that has not ended sees a reset.
func (l *loop) reset(c *conn) {
	if c.target.fd >= 0 {
		unix.SetsockoptLinger(c.target.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	l.end(c)
}

// end closes both sides, and with that epoll forgets them.
func (l *loop) end(c *conn) {
	for _, s := range []*side{&c.target, &c.stream} {
		if s.fd >= 0 {
			delete(l.sides, int32(s.fd))
			unix.Close(s.fd)
		}
	}
	delete(l.young, c)
	c.stage = closed
}

// close resets all connections.
func (l *loop) close() {
	for _, s := range l.sides {
		if s.conn.stage != closed {
			l.reset(s.conn)
		}
	}
	unix.Close(l.epoll)
}
