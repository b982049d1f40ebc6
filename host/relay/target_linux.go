package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// target is the inode of a socket: nobody who can write to its folder, as a
// container may, can have another one connected to.
type target struct {
	path string
	mu   sync.RWMutex
	fd   int // O_PATH; -1 once closed
}

func openTarget(path string) (*target, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, real, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	t := &target{path: path, fd: fd}
	if err := t.check(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

// check says what would keep all connections from being made.
func (t *target) check() error {
	var st unix.Stat_t
	if err := unix.Fstat(t.fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return unix.ENOTSOCK
	}
	// Writing is what connecting asks for.
	if err := unix.Faccessat(unix.AT_FDCWD, t.name(), unix.W_OK, unix.AT_EACCESS); err != nil {
		return err
	}
	// A socket of the other kind refuses this without noticing.
	probe, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(probe)
	if err := unix.Connect(probe, &unix.SockaddrUnix{Name: t.name()}); err == nil {
		return ErrDatagram
	}
	return nil
}

// name is a path of the very inode, short enough for an address whatever the
// socket's own is.
func (t *target) name() string { return fmt.Sprintf("/proc/self/fd/%d", t.fd) }

const (
	// fullWait bounds how long a connection waits while as many as the socket's
	// server allows are waiting for it to accept them.
	fullWait = 10 * time.Second
	// fullPause is between the first two attempts, and doubles up to maxFullPause:
	// the kernel tells nobody when there is room again but whoever blocks in
	// connect, which can't be ended.
	fullPause    = 10 * time.Millisecond
	maxFullPause = 200 * time.Millisecond
)

// dial connects to the socket. Cancelling ctx ends the attempt.
func (t *target) dial(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, fullWait)
	defer cancel()
	for pause := fullPause; ; pause = min(2*pause, maxFullPause) {
		conn, err := t.try()
		if err == nil || !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

func (t *target) try() (*net.UnixConn, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.fd < 0 {
		return nil, net.ErrClosed
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: t.name(), Net: "unix"})
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // which has our name for it
		}
		return nil, fmt.Errorf("connect to %s: %w", t.path, err)
	}
	return conn, nil
}

func (t *target) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	unix.Close(t.fd)
	t.fd = -1
}
