package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// sockets returns a connected pair of UNIX sockets: the agent's and the host's.
func sockets(t *testing.T) (agent, host *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

func newTable() *Streams { return NewStreams(slog.New(slog.DiscardHandler)) }

func ask(t *testing.T, ctx context.Context, table *Streams) net.Conn {
	t.Helper()
	conns, err := table.take(ctx, "c", "e", []string{proto.Stdout})
	if err != nil {
		t.Fatal(err)
	}
	return conns[proto.Stdout]
}

var stdoutKey = streamKey{"c", "e", proto.Stdout}

func TestStreamsEitherOrder(t *testing.T) {
	table := newTable()
	first, _ := sockets(t)
	table.offer(stdoutKey, first)
	if got := ask(t, t.Context(), table); got != first {
		t.Error("stream before the process: got another one")
	}

	second, _ := sockets(t)
	got := make(chan net.Conn)
	go func() {
		conns, _ := table.take(t.Context(), "c", "e", []string{proto.Stdout})
		got <- conns[proto.Stdout]
	}()
	waitFor(t, func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		return len(table.wanted) == 1
	})
	table.offer(stdoutKey, second)
	if c := <-got; c != second {
		t.Errorf("process before the stream: got %v", c)
	}
	if len(table.pending) != 0 || len(table.wanted) != 0 {
		t.Errorf("left: %v, %v", table.pending, table.wanted)
	}
}

// waitFor waits until a condition that another goroutine brings about holds.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timeout")
		}
	}
}

func TestStreamsStale(t *testing.T) {
	table := newTable()
	old, oldHost := sockets(t)
	table.offer(stdoutKey, old)
	newer, _ := sockets(t)
	table.offer(stdoutKey, newer)
	if _, err := oldHost.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("replaced stream: %v, want EOF", err)
	}
	if got := ask(t, t.Context(), table); got != newer {
		t.Error("got the older stream")
	}

	gone, goneHost := sockets(t)
	table.offer(stdoutKey, gone)
	goneHost.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := table.take(ctx, "c", "e", []string{proto.Stdout}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream that hung up: %v, want none", err)
	}

	half, halfHost := sockets(t)
	table.offer(stdoutKey, half)
	halfHost.CloseWrite()
	if got := ask(t, t.Context(), table); got != half {
		t.Error("an empty input was taken for a stream that hung up")
	}

	table.offer(stdoutKey, newer)
	table.forget("c", "e")
	if len(table.pending) != 0 {
		t.Error("forget leaves a stream")
	}
}

func TestStreamsBound(t *testing.T) {
	table := newTable()
	for i := range maxPending {
		table.pending[streamKey{"x", "", string(rune(i))}] = nil
	}
	conn, host := sockets(t)
	table.offer(stdoutKey, conn)
	if _, err := host.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("stream beyond the limit: %v, want EOF", err)
	}
}

func TestPeekLine(t *testing.T) {
	for _, tc := range []struct{ name, send, rest string }{
		{"with data", `{"kind":"stdio","stream":"stdin"}` + "\nrest", "rest"},
		{"alone", `{"kind":"stdio"}` + "\n", ""},
	} {
		conn, host := sockets(t)
		io.WriteString(host, tc.send)
		host.Close()
		h, err := proto.ReadHeader(peekLine(conn))
		if err != nil || h.Kind != proto.StreamStdio {
			t.Errorf("%s: %+v, %v", tc.name, h, err)
		}
		if rest, err := io.ReadAll(conn); err != nil || string(rest) != tc.rest {
			t.Errorf("%s: after the header %q, %v", tc.name, rest, err)
		}
	}
	// In pieces.
	conn, host := sockets(t)
	io.WriteString(host, `{"kind"`)
	go func() {
		time.Sleep(10 * time.Millisecond) // let the first piece be seen alone
		io.WriteString(host, `:"dial"}`+"\n")
	}()
	if h, err := proto.ReadHeader(peekLine(conn)); err != nil || h.Kind != proto.StreamDial {
		t.Errorf("in pieces: %+v, %v", h, err)
	}
}

func TestDrain(t *testing.T) {
	st, err := newStdio(&proto.Streams{Stdout: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, host := sockets(t)
	host.Close()
	st.connect(map[string]net.Conn{proto.Stdout: conn})
	done := make(chan error, 1)
	go func() {
		_, err := st.child.Stdout.Write(make([]byte, 4<<20))
		st.closeChild()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("write of a process without a reader: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a process without a reader hangs")
	}
}

func TestDial(t *testing.T) {
	for _, bad := range [][2]string{{"unix", "/run/x"}, {"tcp", "127.0.0.1:80"}, {"udp", "localhost:80"}, {"udp", "1.2.3.4"}} {
		conn, _ := sockets(t)
		if err := dial(conn, bad[0], bad[1]); err == nil {
			t.Errorf("dial %v: no error", bad)
		}
	}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	conn, host := sockets(t)
	host.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan error, 1)
	go func() { ended <- dial(conn, "udp", server.LocalAddr().String()) }()
	r := bufio.NewReader(host)
	if b, err := r.ReadByte(); err != nil || b != proto.DialOK {
		t.Fatalf("%d, %v", b, err)
	}
	for _, p := range []string{"one", "", strings.Repeat("x", proto.MaxDatagram)} {
		if _, err := host.Write(proto.AppendDatagram(nil, []byte(p))); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, proto.MaxDatagram)
		n, from, err := server.ReadFrom(b)
		if err != nil || string(b[:n]) != p {
			t.Fatalf("the server gets %d bytes, %v; want %d", n, err, len(p))
		}
		if _, err := server.WriteTo(b[:n], from); err != nil {
			t.Fatal(err)
		}
		if got, err := proto.ReadDatagram(r, nil); err != nil || string(got) != p {
			t.Fatalf("the host gets %d bytes, %v; want %d", len(got), err, len(p))
		}
	}
	host.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the flow outlives its stream")
	}
}

func TestCopyTree(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: owners are checked in the VM only")
	}
	src, dst := t.TempDir(), t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(src, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(src, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	a := write("a", 0o4755|os.ModeSetuid)
	write("d/b", 0o640)
	old := time.Unix(1e9, 5)
	for _, err := range []error{
		os.Link(a, filepath.Join(src, "d/hard")),
		os.Symlink("/etc", filepath.Join(src, "link")),
		unix.Mkfifo(filepath.Join(src, "fifo"), 0o622),
		unix.Setxattr(a, "user.colour", []byte("red"), 0),
		os.Chtimes(a, old, old),
		os.Chmod(src, 0o1777|os.ModeSticky),
	} {
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			t.Fatal(err)
		}
	}
	s, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d, err := os.Open(dst)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := copyTree(d, s); err != nil || n != 6 {
		t.Fatalf("copied %d, %v; want 6", n, err)
	}
	for _, name := range []string{".", "a", "d", "d/b", "d/hard", "link", "fifo"} {
		var want, got unix.Stat_t
		if err := unix.Lstat(filepath.Join(src, name), &want); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lstat(filepath.Join(dst, name), &got); err != nil {
			t.Error(err)
			continue
		}
		if got.Mode != want.Mode || got.Nlink != want.Nlink || got.Mtim != want.Mtim || got.Uid != want.Uid {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dst, "d/b")); string(got) != "d/b" {
		t.Errorf("content %q, %v", got, err)
	}
	if got, err := os.Readlink(filepath.Join(dst, "link")); got != "/etc" {
		t.Errorf("link to %q, %v", got, err)
	}
	if _, err := unix.Getxattr(a, "user.colour", make([]byte, 8)); err == nil {
		b := make([]byte, 8)
		if n, err := unix.Getxattr(filepath.Join(dst, "a"), "user.colour", b); err != nil || string(b[:n]) != "red" {
			t.Errorf("attribute: %v", err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "9f", "my_vol.1-x", "sha256:0a"} {
		if err := checkName("x", ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", ".hidden", "a/b", "-x", "a\x00b", strings.Repeat("a", 256)} {
		if err := checkName("x", bad); err == nil {
			t.Errorf("%q is taken for a name", bad)
		}
	}
}

func TestParseMeminfo(t *testing.T) {
	got := parseMeminfo("MemTotal:  100 kB\nHugePages_Total:   3\nbroken\nMemAvailable: 7 kB\n")
	if got["MemTotal"] != 100<<10 || got["MemAvailable"] != 7<<10 || len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func FuzzParseMeminfo(f *testing.F) {
	f.Add("MemTotal: 1 kB\n")
	f.Fuzz(func(t *testing.T, s string) { parseMeminfo(s) })
}
