package agent

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

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
	for name, conn := range map[string]net.Conn{"client": client, "host": host} {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v; want the end", name, n, err)
		}
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still listens")
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
