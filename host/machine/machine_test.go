package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"sampan/proto"
	"sampan/vm"
	"sampan/vm/fake"
)

// agent is a guest's agent that does no more than a session needs.
type agent struct {
	proto.AgentService // what is not overridden is never called
	version            uint32
	off                chan struct{} // closed by PowerOff
	clock              *clock        // optional
}

func (a *agent) Clock(ctx context.Context, r *proto.ClockRequest) (*proto.ClockResponse, error) {
	return a.clock.call(ctx, time.Duration(r.AdjustNano))
}

func (a *agent) Configure(_ context.Context, r *proto.ConfigureRequest) (*proto.ConfigureResponse, error) {
	return &proto.ConfigureResponse{Version: a.version, Kernel: "6.12.0-test", DataDisk: "clean"}, nil
}

func (a *agent) Status(context.Context, *proto.Empty) (*proto.StatusResponse, error) {
	return &proto.StatusResponse{Containers: 7}, nil
}

func (a *agent) PowerOff(context.Context, *proto.PowerOffRequest) (*proto.Empty, error) {
	close(a.off)
	return &proto.Empty{}, nil
}

// guest runs an agent as the real one behaves: it dials when it is ready, and
// serves streams. crash ends the machine by itself.
func guest(version uint32, crash <-chan struct{}) func(context.Context, fake.Guest) error {
	return guestWith(func() *agent { return &agent{version: version} }, crash)
}

// guestWith is guest with an agent of the test's own for each boot.
func guestWith(newAgent func() *agent, crash <-chan struct{}) func(context.Context, fake.Guest) error {
	return func(ctx context.Context, g fake.Guest) error {
		for _, port := range []uint32{proto.PortStream, proto.PortForward} {
			streams, err := g.Listen(port)
			if err != nil {
				return err
			}
			go serveStreams(streams)
		}
		var conn net.Conn
		var err error
		for conn == nil { // the host may not listen yet
			if conn, err = g.Dial(proto.PortControl); err != nil {
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
					return nil
				}
			}
		}
		a := newAgent()
		a.off = make(chan struct{})
		srv, err := ttrpc.NewServer()
		if err != nil {
			return err
		}
		defer srv.Close()
		proto.RegisterAgentService(srv, a)
		go srv.Serve(ctx, &oneListener{conn: conn, done: ctx.Done()})
		select {
		case <-a.off:
			return nil
		case <-crash:
			return errors.New("crashed")
		case <-ctx.Done():
			return nil
		}
	}
}

// serveStreams echoes stdio, and connects dials only to port 80.
func serveStreams(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			h, err := proto.ReadHeader(conn)
			if err != nil {
				return
			}
			if h.Kind == proto.StreamDial {
				if !strings.HasSuffix(h.Address, ":80") {
					return
				}
				conn.Write([]byte{proto.DialOK})
			}
			io.Copy(conn, conn)
		}()
	}
}

type oneListener struct {
	conn net.Conn
	done <-chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{Name: "agent"} }

// newMachine makes a machine over guest and closes it at the test's end.
func newMachine(t *testing.T, g func(context.Context, fake.Guest) error, change func(*Config)) (*Machine, *atomic.Int32) {
	t.Helper()
	boots, files := new(atomic.Int32), new(atomic.Int32)
	dir := t.TempDir()
	guest := func(ctx context.Context, of fake.Guest) error {
		if files.Load() != 1 {
			t.Errorf("a guest begins with its files taken %d times", files.Load())
		}
		return g(ctx, of)
	}
	cfg := Config{
		Driver: &fake.Driver{Guest: guest, Config: func(vm.Config) { boots.Add(1) }},
		Kernel: func() (*Files, error) {
			files.Add(1)
			return &Files{"kernel", "initrd", func() error { return nil }, func() { files.Add(-1) }}, nil
		},
		CPUs: 1, Memory: 256 << 20,
		DataDisk: filepath.Join(dir, "data.img"), DataDiskSize: 1 << 30,
		ConsoleLog: filepath.Join(dir, "console.log"),
		Log:        slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m := New(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if n := files.Load(); n != 0 {
			t.Errorf("the kernel's files are taken %d times after the end", n)
		}
	})
	return m, boots
}

func TestGrowDisk(t *testing.T) {
	m, _ := newMachine(t, nil, nil)
	for _, s := range []struct {
		size, want int64
		ok         bool
	}{{2 << 30, 2 << 30, true}, {3 << 30, 3 << 30, true}, {3 << 30, 3 << 30, true}, {1 << 30, 3 << 30, false}, {3<<30 + 1, 3 << 30, false}} {
		if err := m.GrowDisk(s.size); (err == nil) != s.ok {
			t.Errorf("%d bytes: %v", s.size, err)
		}
		if got := m.Status(t.Context()).DiskSize; got != s.want {
			t.Errorf("%d bytes: the disk has %d, want %d", s.size, got, s.want)
		}
	}
}

func mustGuest(t *testing.T, m *Machine) *Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, err := m.Guest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestBootOnce(t *testing.T) {
	m, boots := newMachine(t, guest(proto.Version, nil), nil)
	if m.Running() != nil || m.Status(t.Context()).State != Stopped {
		t.Fatal("a new machine runs")
	}
	guests := make(chan *Guest, 10)
	for range cap(guests) {
		go func() {
			g, err := m.Guest(context.Background())
			if err != nil {
				t.Error(err)
			}
			guests <- g
		}()
	}
	first := <-guests
	for range cap(guests) - 1 {
		if <-guests != first {
			t.Error("two sessions")
		}
	}
	if n := boots.Load(); n != 1 {
		t.Errorf("%d boots", n)
	}
	s := m.Status(t.Context())
	if s.State != Running || s.Kernel != "6.12.0-test" || s.Guest.GetContainers() != 7 {
		t.Errorf("status %+v", s)
	}
	var names []string
	for _, st := range s.Boot {
		names = append(names, st.Name)
	}
	if got := strings.Join(names, " "); got != "bundle process verified kernel agent configured" {
		t.Errorf("stages: %s", got)
	}
	if fi, err := os.Stat(s.DataDisk); err != nil || fi.Size() != 1<<30 {
		t.Errorf("data disk: %v, %v", fi, err)
	}
}

func TestStreams(t *testing.T) {
	m, _ := newMachine(t, guest(proto.Version, nil), nil)
	g := mustGuest(t, m)
	conn, err := g.Stdio(t.Context(), "c", "", proto.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, conn)
	if conn, err = g.Dial(t.Context(), "tcp", "10.0.0.1:80"); err != nil {
		t.Fatal(err)
	}
	echo(t, conn)
	if conn, err = g.Dial(t.Context(), "tcp", "10.0.0.1:81"); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a refused connection read %d, %v", n, err)
	}
}

func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestStopAndBootAgain(t *testing.T) {
	m, boots := newMachine(t, guest(proto.Version, nil), nil)
	first := mustGuest(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
	default:
		t.Error("the session goes on after Stop")
	}
	if _, err := first.AgentService.Status(t.Context(), &proto.Empty{}); err == nil {
		t.Error("a call after the end succeeded")
	}
	if s := m.Status(t.Context()); s.State != Stopped || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
	if mustGuest(t, m) == first || boots.Load() != 2 {
		t.Error("no second boot")
	}
}

func TestCrash(t *testing.T) {
	crash := make(chan struct{})
	m, _ := newMachine(t, guest(proto.Version, crash), nil)
	g := mustGuest(t, m)
	close(crash)
	select {
	case <-g.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the crash went unnoticed for 5 s")
	}
	if s := m.Status(t.Context()); s.State != Stopped || !strings.Contains(s.LastError, "ended by itself") {
		t.Errorf("status %+v", s)
	}
}

func TestIdle(t *testing.T) {
	m, _ := newMachine(t, guest(proto.Version, nil), func(c *Config) { c.Idle = 50 * time.Millisecond })
	release := m.Hold()
	g := mustGuest(t, m)
	select {
	case <-g.Done():
		t.Fatal("a held machine stopped")
	case <-time.After(200 * time.Millisecond):
	}
	release()
	release() // once is enough
	select {
	case <-g.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the idle machine runs on")
	}
}

func TestBootFails(t *testing.T) {
	for name, c := range map[string]struct {
		guest  func(context.Context, fake.Guest) error
		kernel error // of finding the files
		ready  error // of getting them ready
		want   string
	}{
		"no bundle":       {want: "no bundle here", kernel: errors.New("no bundle here")},
		"damaged bundle":  {want: "no good", ready: errors.New("no good")},
		"crashes":         {want: `stage "agent"`, guest: func(context.Context, fake.Guest) error { return errors.New("panic") }},
		"turns off":       {want: "turned itself off", guest: func(context.Context, fake.Guest) error { return nil }},
		"another version": {want: "make guest", guest: guest(proto.Version+1, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := newMachine(t, c.guest, func(cfg *Config) {
				files := cfg.Kernel
				cfg.Kernel = func() (*Files, error) {
					if c.kernel != nil {
						return nil, c.kernel
					}
					f, err := files()
					if c.ready != nil {
						f.Ready = func() error { return c.ready }
					}
					return f, err
				}
			})
			for range 2 { // a failure is not remembered
				_, err := m.Guest(t.Context())
				if err == nil || !strings.Contains(err.Error(), c.want) || c.ready != nil && err.Error() != c.want {
					t.Fatalf("got %v, want %q", err, c.want)
				}
			}
			if s := m.Status(t.Context()); s.State != Stopped || s.LastError == "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// One crash before the agent's call is forgiven.
func TestSecondChance(t *testing.T) {
	var crashed atomic.Bool
	m, boots := newMachine(t, func(ctx context.Context, g fake.Guest) error {
		if crashed.CompareAndSwap(false, true) {
			return errors.New("panic")
		}
		return guest(proto.Version, nil)(ctx, g)
	}, nil)
	mustGuest(t, m)
	if n := boots.Load(); n != 2 {
		t.Errorf("%d boots", n)
	}
	if s := m.Status(t.Context()); len(s.Boot) != 6 {
		t.Errorf("stages of two boots: %v", s.Boot)
	}
}

func TestWaitCancelled(t *testing.T) {
	hang := make(chan struct{})
	m, boots := newMachine(t, func(ctx context.Context, g fake.Guest) error {
		select {
		case <-hang:
			return guest(proto.Version, nil)(ctx, g)
		case <-ctx.Done():
			return nil
		}
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Guest(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(hang)
	mustGuest(t, m) // the boot went on
	if n := boots.Load(); n != 1 {
		t.Errorf("%d boots", n)
	}
}

func TestConsoleBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	c, err := openConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 * consoleMax / 1000 {
		fmt.Fprintf(c, "%0999d\n", i)
	}
	fmt.Fprintf(c, "the end\r\n")
	for _, p := range []string{path, path + ".1"} {
		if fi, err := os.Stat(p); err != nil || fi.Size() > consoleMax {
			t.Errorf("%s: %v, %v", p, fi.Size(), err)
		}
	}
	if tail := c.Tail(); len(tail) > consoleTail || !strings.HasSuffix(tail, "\nthe end") {
		t.Errorf("tail of %d bytes ends with %q", len(tail), tail[max(0, len(tail)-20):])
	}
}
