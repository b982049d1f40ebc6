package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/proto"
)

// newRelayed makes a relay as a mount does; what it dials is sent to the channel,
// the host's end.
func newRelayed(t *testing.T) (path string, root *rootfs, dialled chan *net.UnixConn) {
	t.Helper()
	dialled = make(chan *net.UnixConn, 1)
	dial := func(port uint32) (net.Conn, error) {
		if port != proto.PortRelay {
			return nil, errors.New("wrong port")
		}
		agent, host := sockets(t)
		host.SetDeadline(time.Now().Add(10 * time.Second))
		dialled <- host
		return agent, nil
	}
	root = &rootfs{run: t.TempDir()}
	path, err := root.relay(specs.Mount{Source: "token", Options: []string{"rw", "mode=660"}}, dial, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return path, root, dialled
}

func connect(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func TestRelay(t *testing.T) {
	path, root, dialled := newRelayed(t)
	defer root.relays[0].close()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v; want a socket with mode 660", fi, err)
	}
	client := connect(t, path)
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	client.CloseWrite()
	host := <-dialled
	h, err := proto.ReadHeader(host)
	if err != nil || h.Kind != proto.StreamSocket || h.Socket != "token" {
		t.Errorf("header %+v, %v", h, err)
	}
	if b, err := io.ReadAll(host); string(b) != "question" || err != nil {
		t.Errorf("the host reads %q, %v", b, err)
	}
	if _, err := host.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	host.CloseWrite()
	if b, err := io.ReadAll(client); string(b) != "answer" || err != nil {
		t.Errorf("the client reads %q, %v", b, err)
	}
}

// With the container its connections end, on both sides.
func TestRelayClose(t *testing.T) {
	path, root, dialled := newRelayed(t)
	client := connect(t, path)
	host := <-dialled
	if _, err := proto.ReadHeader(host); err != nil {
		t.Fatal(err)
	}
	root.relays[0].close()
	root.relays[0].close()
	for name, conn := range map[string]net.Conn{"client": client, "host": host} {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v; want the end", name, n, err)
		}
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still listens")
	}
}

// A container has so many connections, and the next of those that wait is served
// when one ends.
func TestMaxRelayed(t *testing.T) {
	var open atomic.Int32
	hosts := make(chan *net.UnixConn, 2*maxRelayed)
	dial := func(uint32) (net.Conn, error) {
		if n := open.Add(1); n > maxRelayed {
			t.Errorf("%d connections at once", n)
		}
		agent, host := sockets(t)
		hosts <- host
		return agent, nil
	}
	root := &rootfs{run: t.TempDir()}
	path, err := root.relay(specs.Mount{Source: "token", Options: []string{"mode=660"}}, dial, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer root.relays[0].close()
	const more = 10
	var clients []*net.UnixConn
	for range maxRelayed + more {
		clients = append(clients, connect(t, path))
	}
	next := func() *net.UnixConn {
		t.Helper()
		select {
		case host := <-hosts:
			return host
		case <-time.After(10 * time.Second):
			t.Fatal("a connection isn't served")
			return nil
		}
	}
	var served []*net.UnixConn
	for range maxRelayed {
		served = append(served, next())
	}
	for i := range more {
		open.Add(-1)
		clients[i].Close()
		served[i].Close()
		next()
	}
}

// The thread that replays is free again when the host has closed the stream,
// however that shows.
func TestReplayOver(t *testing.T) {
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if !over(fmt.Errorf("read replay: %w", &net.OpError{Op: "read", Err: os.NewSyscallError("read", err)})) {
			t.Errorf("%v: the thread is kept", err)
		}
	}
	if over(errors.New("nonsense")) {
		t.Error("the host may still take the thread for the one that replays")
	}
	agent, host := sockets(t)
	ended := make(chan error, 1)
	go func() { ended <- Replay(agent, t.TempDir()) }()
	host.Write([]byte{100, 1}) // less than it says
	host.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// TestReplayFails: a replay that can't go on ends when the host has closed the
// stream, and keeps no thread.
func TestReplayFails(t *testing.T) {
	for name, tt := range map[string]struct {
		dir  string
		sent []byte
	}{
		"no share":       {"/nonexistent", nil},
		"not a message":  {t.TempDir(), []byte{1, 0xff}},
		"a long message": {t.TempDir(), binary.AppendUvarint(nil, proto.MaxReplay+1)},
	} {
		agent, host := sockets(t)
		ended := make(chan error, 1)
		go func() { ended <- Replay(agent, tt.dir) }()
		host.SetDeadline(time.Now().Add(10 * time.Second))
		host.Write(tt.sent)
		if _, err := io.Copy(io.Discard, host); err != nil { // up to the agent's end
			t.Errorf("%s: %v", name, err)
		}
		select {
		case err := <-ended:
			t.Errorf("%s: over before the host has closed the stream: %v", name, err)
		default:
		}
		host.Close()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it goes on", name)
		}
	}
	stacks := make([]byte, 1<<20)
	if s := string(stacks[:runtime.Stack(stacks, true)]); strings.Contains(s, "agent.Replay") {
		t.Errorf("a thread is kept:\n%s", s)
	}
}

func TestRelayWithoutMode(t *testing.T) {
	root := &rootfs{run: t.TempDir()}
	for _, options := range [][]string{{"rw"}, {"mode=8"}, {"mode=7777"}} {
		if _, err := root.relay(specs.Mount{Source: "token", Options: options}, nil, nil); err == nil {
			t.Errorf("%q: no error", options)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(root.run, "sockets", "*")); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
}
