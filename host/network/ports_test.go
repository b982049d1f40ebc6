package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sampan/vm"
)

// container is a server on loopback that stands for a container's port.
func container(t *testing.T, serve func(*net.TCPConn)) func(context.Context) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
}

func publish(t *testing.T, dial func(context.Context) (net.Conn, error)) *Port {
	t.Helper()
	return publishSpec(t, Spec{Proto: "tcp", HostIP: loopback, Dial: dial})
}

func publishSpec(t *testing.T, spec Spec) *Port {
	t.Helper()
	p, err := NewPorts(slog.New(slog.DiscardHandler)).Publish(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

var loopback = netip.MustParseAddr("127.0.0.1")

func connect(t *testing.T, p *Port) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestHalfClose(t *testing.T) {
	// The answer comes only after the end of the question.
	p := publish(t, container(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(b))
	}))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c := connect(t, p)
			io.WriteString(c, "question")
			c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "QUESTION" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
	wg.Wait()
}

func TestRefusedIsReset(t *testing.T) {
	p := publish(t, refuse)
	wantReset(t, p)
}

// wantReset connects and wants a reset, which may come before connect returns.
func wantReset(t *testing.T, p *Port) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.Addrs()[0]))
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// A container that is found closed only when the first byte is read, as over
// vsock, looks the same.
func TestLateRefusalIsReset(t *testing.T) {
	p := publish(t, func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		return refused{a}, nil
	})
	wantReset(t, p)
}

type refused struct{ net.Conn }

func (refused) Read([]byte) (int, error) { return 0, syscall.ECONNREFUSED }

func TestClose(t *testing.T) {
	p := publish(t, container(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	c := connect(t, p)
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { p.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Close waits for an open connection")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its port")
	}
	p.Close()
}

// Who holds a port is told: another of ours, or a process of the host.
func TestConflict(t *testing.T) {
	ports := NewPorts(slog.New(slog.DiscardHandler))
	for _, proto := range []string{"tcp", "udp"} {
		spec := Spec{Proto: proto, HostIP: loopback, Owner: "web", Dial: refuse}
		p, err := ports.Publish(spec)
		if err != nil {
			t.Fatal(err)
		}
		port := p.Addrs()[0].Port()
		for _, ip := range []netip.Addr{loopback, {}, netip.IPv4Unspecified()} {
			_, err := ports.Publish(Spec{Proto: proto, HostIP: ip, HostPort: port, Owner: "db", Dial: refuse})
			shown := ip
			if !ip.IsValid() {
				shown = netip.IPv4Unspecified()
			}
			if want := fmt.Sprintf("Bind for %s:%d failed: port is already allocated by web", shown, port); err == nil || err.Error() != want || !errors.Is(err, ErrInUse) {
				t.Errorf("%s: got %v, want %s", proto, err, want)
			}
		}
		// Another address is another port.
		if other, err := ports.Publish(Spec{Proto: proto, HostIP: netip.MustParseAddr("127.0.0.2"), HostPort: port, Dial: refuse}); err != nil {
			t.Error(err)
		} else {
			other.Close()
		}
		_, err = NewPorts(slog.New(slog.DiscardHandler)).Publish(Spec{Proto: proto, HostIP: loopback, HostPort: port, Dial: refuse})
		want := fmt.Sprintf("failed to bind host port 127.0.0.1:%d/%s: address already in use", port, proto)
		if runtime.GOOS == "linux" {
			want += fmt.Sprintf(" by process %d (network.test)", os.Getpid())
		}
		if err == nil || err.Error() != want || !errors.Is(err, ErrInUse) {
			t.Errorf("%s: got %v, want %s", proto, err, want)
		}
		p.Close()
		if p, err := ports.Publish(Spec{Proto: proto, HostIP: loopback, HostPort: port, Dial: refuse}); err != nil {
			t.Errorf("%s: after Close: %v", proto, err)
		} else {
			p.Close()
		}
	}
	if _, err := ports.Publish(Spec{Proto: "sctp", Dial: refuse}); !errors.Is(err, vm.ErrUnsupported) {
		t.Errorf("sctp: got %v", err)
	}
}

func refuse(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }

// Without an address a port is there for IPv4 and IPv6, as Docker's is.
func TestBothFamilies(t *testing.T) {
	if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Log("no IPv6 here: its half is not checked")
		return
	} else {
		ln.Close()
	}
	dial := container(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })
	p := publishSpec(t, Spec{Proto: "tcp", Dial: dial})
	want := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	port := p.Addrs()[0].Port()
	if got := p.Addrs(); len(got) != 2 || got[0] != netip.AddrPortFrom(want[0], port) || got[1] != netip.AddrPortFrom(want[1], port) {
		t.Errorf("listens on %v", got)
	}
	only6 := publishSpec(t, Spec{Proto: "tcp", HostIP: netip.IPv6Unspecified(), Dial: dial})
	if got := only6.Addrs(); len(got) != 1 || got[0].Addr() != netip.IPv6Unspecified() {
		t.Errorf("[::] listens on %v", got)
	}
	for addr, works := range map[string]bool{
		fmt.Sprintf("127.0.0.1:%d", port): true, fmt.Sprintf("[::1]:%d", port): true,
		fmt.Sprintf("[::1]:%d", only6.Addrs()[0].Port()): true, fmt.Sprintf("127.0.0.1:%d", only6.Addrs()[0].Port()): false,
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			if works {
				t.Errorf("%s: %v", addr, err)
			}
			continue
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(c); string(b) != "hello" || !works {
			t.Errorf("%s: %q, %v", addr, b, err)
		}
		c.Close()
	}
}

// A listener that breaks is made anew, and meanwhile the port is told of.
func TestRestart(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		ports := NewPorts(slog.New(slog.DiscardHandler))
		spec := Spec{Proto: proto, HostIP: loopback, Owner: "web", Dial: container(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })}
		first, err := listen(spec)
		if err != nil {
			t.Fatal(err)
		}
		p := &Port{spec: spec, ports: ports, addrs: first.Addrs()}
		p.ctx, p.cancel = context.WithCancel(t.Context())
		ports.open[p] = struct{}{}
		blocker := make(chan struct{})
		p.wg.Go(func() { p.run(broken{first, blocker}) })
		for end := time.Now().Add(10 * time.Second); len(ports.Failing()) == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not told of", proto)
			}
		}
		if f := ports.Failing()[0]; f.Owner != "web" || f.Addr != p.Addrs()[0] || f.Proto != proto || !strings.Contains(f.Err.Error(), "broken") && !errors.Is(f.Err, syscall.EADDRINUSE) {
			t.Errorf("%s: %+v", proto, f)
		}
		close(blocker) // gives the port free
		for end := time.Now().Add(10 * time.Second); len(ports.Failing()) != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: does not come back: %v", proto, ports.Failing())
			}
		}
		if proto == "tcp" {
			if b, err := io.ReadAll(connect(t, p)); err != nil || string(b) != "hello" {
				t.Errorf("after the restart: %q, %v", b, err)
			}
		}
		p.Close()
	}
}

// The parts of a port fail and work each by itself, and a failed dial is told of
// for a while only: without clients nobody finds out that it works again.
func TestFailures(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1000, 0)
	ports := NewPorts(slog.New(slog.NewTextHandler(&log, nil)))
	ports.now = func() time.Time { return now }
	dialErr := errors.New("no way")
	var result error
	p := &Port{ports: ports, addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:80")}, spec: Spec{Proto: "tcp", Dial: func(context.Context) (net.Conn, error) { return nil, result }}}
	ports.open[p] = struct{}{}
	want := func(step string, err error, since time.Time) {
		t.Helper()
		switch f := ports.Failing(); {
		case err == nil && len(f) != 0, err != nil && (len(f) != 1 || f[0].Err != err || !f[0].Since.Equal(since)):
			t.Errorf("%s: %+v, want %v since %v", step, f, err, since)
		}
	}
	began := now
	p.works(listening, dialling)
	if log.Len() != 0 {
		t.Errorf("nothing has failed, and the log says %s", &log)
	}
	result = dialErr
	p.dial(t.Context())
	want("a failed dial", dialErr, began)
	now = now.Add(dialTold)
	p.dial(t.Context())
	now = now.Add(dialTold)
	want("another one", dialErr, began)
	now = now.Add(1)
	want("some time after the last", nil, began)
	result = nil
	p.dial(t.Context())
	if got := log.String(); strings.Count(got, "it is tried again") != 1 || strings.Count(got, "works again") != 1 || !strings.Contains(got, "after=20s") {
		t.Errorf("log: %s", got)
	}

	log.Reset()
	began = now
	broken := errors.New("broken")
	p.failed(receiving4, broken)
	now = now.Add(time.Hour)
	p.works(receiving6, dialling)
	p.dial(t.Context())
	want("another part works", broken, began)
	if strings.Contains(log.String(), "works again") {
		t.Errorf("log: %s", &log)
	}
	p.works(receiving4)
	want("the part works", nil, began)
	if p.failing.Load() || !strings.Contains(log.String(), "after=1h0m0s") {
		t.Errorf("log: %s", &log)
	}
}

// broken is a socket that fails, and keeps the port until it is allowed to go.
type broken struct {
	socket
	free chan struct{}
}

func (b broken) Serve(*Port) error { return errors.New("broken") }

func (b broken) Close() error {
	go func() { <-b.free; b.socket.Close() }()
	return nil
}

// Resets travel both ways: as a connection that is closed before its directions
// were ended one by one, which is how the agent's end of it looks.
func TestResets(t *testing.T) {
	streams := make(chan *net.UnixConn, 1)
	p := publish(t, func(context.Context) (net.Conn, error) {
		ours, theirs := unixPair(t)
		streams <- theirs
		return ours, nil
	})
	c := connect(t, p)
	io.WriteString(c, "x")
	agent := <-streams
	if _, err := io.ReadFull(agent, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.SetLinger(0)
	c.Close()
	if n, err := agent.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the agent reads %d, %v; want the end", n, err)
	}
	if _, err := agent.Write(nil); err == nil {
		t.Error("the client's reset looks like an end to the agent")
	}

	c = connect(t, p)
	(<-streams).Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
	// Ended in order, the one or the other side first, it is an end.
	for _, clientFirst := range []bool{true, false} {
		c, agent := connect(t, p), <-streams
		ends := []func(){
			func() {
				c.CloseWrite()
				if _, err := agent.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the agent reads %v, want the end", err)
				}
				if _, err := agent.Write(nil); clientFirst && err != nil {
					t.Errorf("an end looks like a reset to the agent: %v", err)
				}
			},
			func() {
				agent.CloseWrite()
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the client reads %v, want the end", err)
				}
			},
		}
		if !clientFirst {
			slices.Reverse(ends)
		}
		for _, end := range ends {
			end()
		}
	}
}

// unixPair is a connection that behaves as vsock does.
func unixPair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// Much goes both ways at once, unharmed, beside a client that doesn't read.
func TestBulk(t *testing.T) {
	const size = 16 << 20
	p := publish(t, container(t, func(c *net.TCPConn) { io.Copy(c, c) }))
	slow := connect(t, p)
	go io.CopyN(slow, rand.NewChaCha8([32]byte{1}), size) // never read
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			c := connect(t, p)
			sent, got := sha256.New(), sha256.New()
			go func() {
				io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{2}), size)
				c.CloseWrite()
			}()
			n, err := io.Copy(got, c)
			if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
				t.Errorf("%d bytes of %d, %v, or other ones", n, size, err)
			}
		})
	}
	wg.Wait()
}

// A thousand ports and as many connections that do nothing are cheap.
func TestMany(t *testing.T) {
	ports := NewPorts(slog.New(slog.DiscardHandler))
	dial := container(t, func(c *net.TCPConn) { io.Copy(c, c) })
	var all []*Port
	defer func() {
		for _, p := range all {
			p.Close()
		}
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var conns []*net.TCPConn
	for range 1000 {
		p, err := ports.Publish(Spec{Proto: "tcp", HostIP: loopback, Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
		conns = append(conns, connect(t, p))
	}
	for range 2 {
		for i, c := range conns {
			b := []byte(fmt.Sprintf("%04d", i))
			c.Write(b)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != fmt.Sprintf("%04d", i) {
				t.Fatalf("connection %d: %q, %v", i, b, err)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// The test's own end of each has a buffer of 32 KiB.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("1000 ports and connections take %d bytes", grown)
	}
}

// The container learns the client's address.
func TestProxyProtocol(t *testing.T) {
	head := make(chan []byte, 1)
	dial := container(t, func(c *net.TCPConn) {
		b := make([]byte, 28)
		io.ReadFull(c, b)
		head <- b
		io.Copy(c, c)
	})
	p := publishSpec(t, Spec{Proto: "tcp", HostIP: loopback, ProxyProtocol: true, Dial: dial})
	c := connect(t, p)
	io.WriteString(c, "hello")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
	// The example of the specification, section 2.2, with our addresses.
	src, dst := c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).Port
	want := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01"),
		byte(src>>8), byte(src), byte(dst>>8), byte(dst))
	if got := <-head; !bytes.Equal(got, want) {
		t.Errorf("header\n%x, want\n%x", got, want)
	}
	six := proxyHeader(netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:258"))
	if len(six) != 16+36 || six[13] != 0x21 || six[15] != 36 || !bytes.HasSuffix(six, []byte{0, 2, 0, 1, 1, 2}) {
		t.Errorf("IPv6: %x", six)
	}
}
