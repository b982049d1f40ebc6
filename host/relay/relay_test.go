package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sampan/proto"
	"sampan/vm"
	"sampan/vm/fake"
)

// machine is a running machine whose connections a relay serves.
type machine struct {
	relay *Relay
	guest fake.Guest
	vm    vm.Machine
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	inside := make(chan fake.Guest, 1)
	d := &fake.Driver{Guest: func(ctx context.Context, g fake.Guest) error {
		inside <- g
		<-ctx.Done()
		return nil
	}}
	m, err := d.Boot(t.Context(), vm.Config{Kernel: "k", Initrd: "i", CPUs: 1, Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := m.Listen(proto.PortRelay)
	if err != nil {
		t.Fatal(err)
	}
	r := New(slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- r.Serve(ln) }()
	t.Cleanup(func() {
		m.Stop(context.Background())
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return &machine{relay: r, guest: <-inside, vm: m}
}

// dial connects to a socket as the agent does.
func (m *machine) dial(t *testing.T, name string) net.Conn {
	t.Helper()
	conn, err := m.guest.Dial(proto.PortRelay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := proto.WriteHeader(conn, proto.StreamHeader{Kind: proto.StreamSocket, Socket: name}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// upper is a socket that answers with capitals, once it has read everything.
func upper(t *testing.T, path string) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b, err := io.ReadAll(conn)
				if err == nil {
					conn.Write(bytes.ToUpper(b))
				}
			}()
		}
	}()
	return ln
}

// Bytes go both ways with the half-close between them, also by a link and by a
// path longer than an address may be.
func TestRelay(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	t.Chdir(dir)
	upper(t, "s")
	deep := filepath.Join(dir, strings.Repeat("d", 120))
	if err := errors.Join(os.Mkdir(deep, 0o755), os.Rename("s", filepath.Join(deep, "s")), os.Symlink(deep, "link")); err != nil {
		t.Fatal(err)
	}
	s, err := m.relay.Add(filepath.Join(dir, "link", "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sent := bytes.Repeat([]byte("words "), 100_000)
	conn := m.dial(t, s.Name())
	go func() {
		conn.Write(sent)
		conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, bytes.ToUpper(sent)) {
		t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(sent))
	}
}

// Nothing but a name that has been given out gives access, and that only until
// it is taken back.
func TestAccess(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "s")
	upper(t, path)
	refused := func(name string) {
		t.Helper()
		conn := m.dial(t, name)
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: read %d, %v; want the end", name, n, err)
		}
	}
	refused("")
	refused(path)
	s, err := m.relay.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	open := m.dial(t, s.Name())
	if _, err := open.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if n, err := open.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Close: read %d, %v; want the end", n, err)
	}
	refused(s.Name())
}

// What is put in a socket's place later is not connected to.
func TestReplaced(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("this system holds a socket by its path")
	}
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "s")
	old := upper(t, path)
	s, err := m.relay.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	old.Close() // removes the name
	upper(t, path)
	conn := m.dial(t, s.Name())
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d, %v; want the end", n, err)
	}
}

// What can't be connected to is refused when it is added.
func TestAddRefuses(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler))
	dir := t.TempDir()
	datagrams, err := net.ListenPacket("unixgram", filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	for _, c := range []struct {
		name string
		want error
	}{{"log", ErrDatagram}, {"none", fs.ErrNotExist}} {
		if _, err := r.Add(filepath.Join(dir, c.name)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := r.Add(dir); err == nil {
		t.Error("a folder was taken for a socket")
	}
	if os.Geteuid() == 0 {
		return // may connect to anything
	}
	path := filepath.Join(dir, "s")
	upper(t, path)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a socket that is not to be written to: %v", err)
	}
}
