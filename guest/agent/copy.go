package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// syscallConn is what files, sockets and vsock connections have in common.
type syscallConn interface {
	SyscallConn() (syscall.RawConn, error)
}

// closeWriter is the half-close of TCP and vsock connections.
type closeWriter interface{ CloseWrite() error }

// bufferSize of copies: what one vsock write moves well, and a pipe can hold.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// lazyReader reads from a file or socket with buffers that it takes only once
// there is something to read: a thousand idle containers hold none.
type lazyReader struct{ rc syscall.RawConn }

func newLazyReader(r syscallConn) (lazyReader, error) {
	rc, err := r.SyscallConn()
	return lazyReader{rc}, err
}

// next waits for data and returns it in a buffer to be put back, io.EOF at the
// end.
func (r lazyReader) next() (*[]byte, int, error) {
	var (
		buf *[]byte
		n   int
		err error
	)
	werr := r.rc.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		for {
			n, err = unix.Read(int(fd), *buf)
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if werr != nil {
		err = werr
	} else if err == nil && n > 0 {
		return buf, n, nil
	} else if err == nil {
		err = io.EOF
	}
	if buf != nil {
		buffers.Put(buf)
	}
	return nil, 0, err
}

// errWrite wraps errors of the destination.
type errWrite struct{ error }

// copyAll copies until the end of src, which is no error. An error of dst is
// an errWrite.
func copyAll(dst io.Writer, src syscallConn) error {
	r, err := newLazyReader(src)
	if err != nil {
		return err
	}
	for {
		buf, n, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = dst.Write((*buf)[:n])
		buffers.Put(buf)
		if err != nil {
			return errWrite{err}
		}
	}
}

// copyOrDrain is copyAll for what a process writes: it must never be blocked
// by a reader that is gone.
func copyOrDrain(dst io.Writer, src syscallConn) error {
	err := copyAll(dst, src)
	if _, gone := errors.AsType[errWrite](err); gone {
		return copyAll(io.Discard, src)
	}
	return err
}

// peekLine returns a reader for the first line of conn. It looks at what has
// arrived, so that reading byte by byte costs no system call each.
func peekLine(conn net.Conn) io.Reader {
	sc, ok := conn.(syscallConn)
	if !ok {
		return conn
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return conn
	}
	b := make([]byte, proto.MaxHeader)
	n := 0
	err = rc.Read(func(fd uintptr) bool {
		var err error
		n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	})
	end := bytes.IndexByte(b[:max(n, 0)], '\n')
	if err != nil || end < 0 {
		return conn // in pieces: the slow way
	}
	if _, err := io.ReadFull(conn, b[:end+1]); err != nil {
		return conn
	}
	return bytes.NewReader(b[:end+1])
}
