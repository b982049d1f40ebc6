package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"

	"sampan/proto"
	"sampan/vm"
)

// Guest is a session with the agent of a running machine. Its methods may be
// called from several goroutines; when the machine has ended they fail at once.
type Guest struct {
	proto.AgentService
	// Info is the agent's answer to Configure.
	Info *proto.ConfigureResponse

	vm      vm.Machine
	client  *ttrpc.Client
	console *console
	stages  *stages
	started sync.Once // a first container
	detach  func()    // network card; may be nil
	relay   func()    // ends the relay to this host's sockets; may be nil
	counter Counter   // of the network card; may be nil
	before  Traffic   // what it had counted already
	done    chan struct{}
	endOnce sync.Once
	hungUp  chan struct{} // closed by lost
	gone    chan struct{} // closed by Machine.watch when nothing is left
}

// Start is the agent's; the first container that runs is the boot's last stage.
func (g *Guest) Start(ctx context.Context, req *proto.StartRequest) (*proto.StartResponse, error) {
	res, err := g.AgentService.Start(ctx, req)
	if err == nil {
		g.started.Do(func() { g.stages.reached("container") })
	}
	return res, err
}

// Stdio opens one standard stream of a process (proto.Stdin, Stdout, Stderr,
// TTY). The connection has CloseWrite.
func (g *Guest) Stdio(ctx context.Context, container, exec, stream string) (net.Conn, error) {
	return g.open(ctx, proto.StreamHeader{Kind: proto.StreamStdio, Container: container, Exec: exec, Stream: stream})
}

// Archive opens the stream of a transfer of a container's files. The connection
// has CloseWrite.
func (g *Guest) Archive(ctx context.Context, container, transfer string) (net.Conn, error) {
	return g.open(ctx, proto.StreamHeader{Kind: proto.StreamArchive, Container: container, Stream: transfer})
}

// Dial opens a network connection from within the guest. It does not wait for
// the guest: when the address can't be reached, the first Read fails with
// ECONNREFUSED. The connection has CloseWrite.
func (g *Guest) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var port uint32 = proto.PortStream
	if network == "tcp" {
		port = proto.PortForward
	}
	conn, err := g.openAt(ctx, port, proto.StreamHeader{Kind: proto.StreamDial, Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	return &dialed{Conn: conn, address: address}, nil
}

// Listeners opens the stream of the guest's own listening ports.
func (g *Guest) Listeners(ctx context.Context) (net.Conn, error) {
	return g.open(ctx, proto.StreamHeader{Kind: proto.StreamListeners})
}

// Replays opens the stream of changes that the agent is to make once more.
func (g *Guest) Replays(ctx context.Context) (net.Conn, error) {
	return g.open(ctx, proto.StreamHeader{Kind: proto.StreamReplays})
}

// dialed takes proto.DialOK from the front of a stream.
type dialed struct {
	net.Conn
	address string
	ok      atomic.Bool
	mu      sync.Mutex // of the first read
}

func (d *dialed) Read(p []byte) (int, error) {
	if !d.ok.Load() {
		if err := d.await(); err != nil {
			return 0, err
		}
	}
	return d.Conn.Read(p)
}

func (d *dialed) await() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ok.Load() {
		return nil
	}
	var b [1]byte
	n, err := d.Conn.Read(b[:])
	switch {
	case n == 1 && b[0] == proto.DialOK:
		d.ok.Store(true)
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return &net.OpError{Op: "dial", Net: "guest", Err: fmt.Errorf("%s: %w", d.address, syscall.ECONNREFUSED)}
	}
	return err
}

// CloseWrite ends the sending direction.
func (d *dialed) CloseWrite() error {
	if cw, ok := d.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return vm.ErrUnsupported
}

// Done is closed when the session has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

func (g *Guest) open(ctx context.Context, h proto.StreamHeader) (net.Conn, error) {
	return g.openAt(ctx, proto.PortStream, h)
}

func (g *Guest) openAt(ctx context.Context, port uint32, h proto.StreamHeader) (net.Conn, error) {
	conn, err := g.vm.Dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, err)
	}
	if err := proto.WriteHeader(conn, h); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, err)
	}
	return conn, nil
}

// lost is called when the control connection ends. Without it the machine is
// of no use, and nobody gets the session any more; unless the machine is about
// to end anyway, the plug is pulled.
func (g *Guest) lost() {
	close(g.hungUp)
	go func() {
		t := time.NewTimer(offTimeout)
		defer t.Stop()
		select {
		case <-g.gone:
		case <-t.C:
			g.vm.Stop(context.Background())
		}
	}()
}

// ending says whether the session has lost its connection.
func (g *Guest) ending() bool {
	select {
	case <-g.hungUp:
		return true
	default:
		return false
	}
}

// powerOff asks the guest to turn itself off, and pulls the plug when it has
// not in time.
func (g *Guest) powerOff(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, offTimeout)
	defer cancel()
	// The connection ends instead of an answer; a failure shows in Wait below.
	g.PowerOff(ctx, &proto.PowerOffRequest{GraceMs: uint32(graceTimeout / time.Millisecond)})
	ended := make(chan struct{})
	go func() {
		g.vm.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		g.vm.Stop(context.Background())
	}
}

// end releases what the session holds.
func (g *Guest) end() {
	g.endOnce.Do(func() {
		close(g.done)
		if g.client != nil {
			g.client.Close()
		}
		if g.detach != nil {
			g.detach()
		}
		if g.relay != nil {
			g.relay()
		}
		g.console.Close()
	})
}
