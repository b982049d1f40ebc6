package relay

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// A connection to a socket whose server is behind with accepting waits its turn.
func TestFullBacklog(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil { // one may wait
		t.Fatal(err)
	}
	s, err := m.relay.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := s.target.try(); err == nil {
		t.Fatal("the backlog isn't full")
	}
	conn := m.dial(t, s.Name())
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(5 * fullPause))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with a full backlog: %v, want to wait", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // first, and then conn
		nfd, _, err := unix.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(nfd)
		unix.Write(nfd, []byte("y"))
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 1 {
		t.Errorf("when there is room: %d, %v", n, err)
	}
}

// All containers together have so many connections, and what comes beyond is
// closed until one of them ends.
func TestMaxConns(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.Write([]byte("y"))
				conn.Read(make([]byte, 1)) // until the relay ends it
			}()
		}
	}()
	s, err := m.relay.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	served := func() (net.Conn, error) {
		conn, err := m.guest.Dial(proto.PortRelay)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := proto.WriteHeader(conn, proto.StreamHeader{Kind: proto.StreamSocket, Socket: s.Name()}); err != nil {
			return conn, err
		}
		_, err = conn.Read(make([]byte, 1))
		return conn, err
	}
	var last net.Conn
	for i := range maxConns {
		if last, err = served(); err != nil {
			t.Fatalf("connection %d of %d: %v", i+1, maxConns, err)
		}
	}
	if _, err := served(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more: %v; want it closed", err)
	}
	last.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // nobody tells that it has ended
		if _, err := served(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no connection in place of one that has ended")
		}
	}
}
