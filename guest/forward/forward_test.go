package forward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// host is where the streams of a Forwarder come from: a UNIX socket, which is
// what vsock is but for its addresses.
type host struct {
	t    *testing.T
	path string
	end  func() // of the Forwarder
}

// serve runs a Forwarder until the test ends, which fails unless it then ends.
func serve(t *testing.T, f *Forwarder) host {
	t.Helper()
	return run(t, f.Serve)
}

// run is serve with another way to do it.
func run(t *testing.T, serve func(context.Context, int) error) host {
	t.Helper()
	h := host{t: t, path: filepath.Join(t.TempDir(), "s")}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: h.path}), unix.Listen(fd, 128)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, fd) }()
	h.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve outlives its context")
		}
		unix.Close(fd)
	})
	t.Cleanup(h.end)
	return h
}

func quietly() *Forwarder { return New(slog.New(slog.DiscardHandler)) }

// connect opens a stream without a header.
func (h host) connect() *net.UnixConn {
	h.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.path})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// dial opens a stream to an address.
func (h host) dial(address string) *net.UnixConn {
	h.t.Helper()
	c := h.connect()
	if err := proto.WriteHeader(c, proto.StreamHeader{Kind: proto.StreamDial, Network: "tcp", Address: address}); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// open is dial up to proto.DialOK, and the server's end.
func (h host) open(ln net.Listener) (stream *net.UnixConn, server *net.TCPConn) {
	h.t.Helper()
	stream = h.dial(ln.Addr().String())
	server = h.accept(ln)
	if b := make([]byte, 1); h.read(stream, b) != nil || b[0] != proto.DialOK {
		h.t.Fatalf("got %d, want %d", b[0], proto.DialOK)
	}
	return stream, server
}

func (h host) read(r io.Reader, b []byte) error {
	h.t.Helper()
	_, err := io.ReadFull(r, b)
	if err != nil {
		h.t.Error(err)
	}
	return err
}

func (h host) accept(ln net.Listener) *net.TCPConn {
	h.t.Helper()
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
	c, err := ln.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestForward(t *testing.T) {
	h := serve(t, quietly())
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln := listen(t, address)
		stream := h.dial(ln.Addr().String())
		io.WriteString(stream, "hello") // the host need not wait
		stream.CloseWrite()
		server := h.accept(ln)
		b, err := io.ReadAll(server) // ends with the half-close
		if err != nil {
			t.Fatal(err)
		}
		server.Write(bytes.ToUpper(b))
		server.Close()
		if got, err := io.ReadAll(stream); err != nil || string(got) != string(proto.DialOK)+"HELLO" {
			t.Errorf("%s: got %q, %v", address, got, err)
		}
		ln.Close()
		if got, err := io.ReadAll(h.dial(ln.Addr().String())); err != nil || len(got) != 0 {
			t.Errorf("%s: nobody listens, got %q, %v; want the end", address, got, err)
		}
	}
}

// A header may come in pieces, and what isn't one ends its stream, and is logged.
func TestHeader(t *testing.T) {
	var log logged
	f := New(slog.New(slog.NewTextHandler(&log, nil)))
	h := serve(t, f)
	ln := listen(t, "127.0.0.1:0")
	stream := h.connect()
	for b := range strings.SplitSeq(`{"kind":"dial",|"network":"tcp","address":"`+ln.Addr().String()+`"|}`+"\n", "|") {
		io.WriteString(stream, b)
		time.Sleep(10 * time.Millisecond) // mostly a read of its own; right either way
	}
	h.accept(ln)
	h.read(stream, make([]byte, 1))

	for _, bad := range []struct{ line, want string }{
		{"hello\n", "stream header"},
		{strings.Repeat("x", proto.MaxHeader), "no line feed"},
		{`{"kind":"stdio"}` + "\n", "not for forwarding"},
		{`{"kind":"dial","network":"udp","address":"127.0.0.1:1"}` + "\n", "not for forwarding"},
		{`{"kind":"dial","network":"tcp","address":"localhost:80"}` + "\n", "not an IP address"},
		{`{"kind":"dial","network":"tcp","address":"1.2.3.4"}` + "\n", "not an IP address"},
		{`{"kind":"dial","network":"tcp","address":"[fe80::1%1]:80"}` + "\n", "not an IP address"},
	} {
		log.Reset()
		stream := h.connect()
		io.WriteString(stream, bad.line)
		stream.CloseWrite()
		if got, _ := io.ReadAll(stream); len(got) != 0 {
			t.Errorf("%.60q: got %q, want the end", bad.line, got)
		}
		if got := log.String(); !strings.Contains(got, bad.want) {
			t.Errorf("%.60q: log %q, want %q", bad.line, got, bad.want)
		}
	}
}

// logged is a log that may be read meanwhile.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// Neither a host that says nothing nor a target that never accepts is waited
// for without end.
func TestWaits(t *testing.T) {
	f := quietly()
	f.headerWait, f.dialWait = 50*time.Millisecond, 50*time.Millisecond
	h := serve(t, f)
	if got, err := io.ReadAll(h.connect()); err != nil || len(got) != 0 {
		t.Errorf("without a header: %q, %v; want the end", got, err)
	}
	// A full queue drops what knocks.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.(*unix.SockaddrInet4).Port}).String()
	first, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if got, err := io.ReadAll(h.dial(address)); err != nil || len(got) != 0 {
		t.Errorf("nobody accepts: %q, %v; want the end", got, err)
	}
}

// When the threads end, connections are reset, and the next ones are served.
func TestRun(t *testing.T) {
	var log logged
	f := New(slog.New(slog.NewTextHandler(&log, nil)))
	h := run(t, func(ctx context.Context, fd int) error { f.Run(ctx, fd); return nil })
	ln := listen(t, "127.0.0.1:0")
	for range 3 {
		stream, server := h.open(ln)
		endThreads(t)
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server reads %v, want a reset", err)
		}
		if _, err := stream.Read(make([]byte, 1)); err == nil {
			t.Error("the host's connection goes on")
		}
	}
	h.open(ln)
	h.end()
	if got := log.String(); strings.Count(got, "started again") != 3 || !strings.Contains(got, errEnded.Error()) {
		t.Errorf("log: %s", got)
	}
}

// endThreads has the threads of this process's Forwarder end, by what tells them
// to. Go's own poller has such a descriptor, too, and takes no harm.
func endThreads(t *testing.T) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == "anon_inode:[eventfd]" {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A reset of either side is one for the other; a half-close is none.
func TestReset(t *testing.T) {
	h := serve(t, quietly())
	ln := listen(t, "127.0.0.1:0")
	stream, server := h.open(ln)
	stream.Close()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server reads %v, want a reset", err)
	}

	stream, server = h.open(ln)
	server.SetLinger(0)
	server.Close()
	if _, err := stream.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the host reads %v, want the end", err)
	}
	if _, err := stream.Write(nil); err == nil {
		t.Error("a reset looks like an end to the host")
	}

	stream, server = h.open(ln)
	server.CloseWrite()
	if _, err := stream.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the host reads %v, want the end", err)
	}
	if _, err := io.WriteString(stream, "x"); err != nil {
		t.Errorf("a half-close looks like a reset to the host: %v", err)
	}
	h.read(server, make([]byte, 1))
	stream.Close() // has ended what it sends, and wants no more
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server reads %v, want the end", err)
	}
}

// What two sides send one another arrives, whatever the other does meanwhile; and
// who doesn't read keeps nobody else waiting.
func TestBulk(t *testing.T) {
	h := serve(t, quietly())
	ln := listen(t, "127.0.0.1:0")
	slow, full := h.open(ln)
	much := make([]byte, 64<<20)
	for n, end := 0, time.Now().Add(30*time.Second); n == 0; { // a busy machine may begin when the time is over
		if time.Now().After(end) {
			t.Fatal("a stream takes nothing")
		}
		var err error
		full.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err = full.Write(much); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a stream that isn't read takes 64 MiB: %v", err)
		}
	}

	const size = 4 << 20
	var all sync.WaitGroup
	for range 4 {
		stream, server := h.open(ln)
		for _, way := range [][2]interface {
			net.Conn
			CloseWrite() error
		}{{stream, server}, {server, stream}} {
			data := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(rand.Int())}).Read(data)
			all.Go(func() {
				if _, err := way[0].Write(data); err != nil {
					t.Error(err)
				}
				if err := way[0].CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				got, err := io.ReadAll(way[1])
				if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
					t.Errorf("got %d bytes, %v; want %d, the same", len(got), err, size)
				}
			})
		}
	}
	all.Wait()

	// The slow one has lost nothing, and its end comes behind it.
	full.SetLinger(-1)
	full.CloseWrite()
	if n, err := io.Copy(io.Discard, slow); err != nil || n == 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// The end of Serve is a reset for all.
func TestEnd(t *testing.T) {
	h := serve(t, quietly())
	_, server := h.open(listen(t, "127.0.0.1:0"))
	h.end()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server reads %v, want a reset", err)
	}
}
