package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"sampan/vm"
	"sampan/vm/qemu"
	"sampan/vm/vmtest/guest"
	"sampan/vm/vmtest/image"
	"sampan/vm/vmtest/speed"
)

const (
	roundTrips  = 1000
	connections = 2000 // in turn,
	atOnce      = 16   // so many at a time
)

// vsockRows measure connections, without and with what is around them in the
// product: the bare device, to a guest whose init does nothing else, and the way
// through a published port into a container.
func (b *bench) vsockRows() []row {
	here, local := lazily(b.unixPeer), lazily(b.tcpPeer)
	machine, port := lazily(b.bareMachine), lazily(b.container)
	const emulated = "the guest's system calls and copies under emulation"
	toGuest := func(p speed.Peer) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) { return p.ToGuest(ctx, bigSize) }
	}
	toHost := func(p speed.Peer) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) { return p.ToHost(ctx, bigSize) }
	}
	trip := func(p speed.Peer) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) { return p.RoundTrip(ctx, roundTrips) }
	}
	connect := func(p speed.Peer) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) { return p.Connections(ctx, connections, atOnce) }
	}
	return []row{
		{"vsock: 128 MiB to the guest", "a UNIX socket on the host", "the guest's buffers of 4 KiB", "MiB/s", toGuest(machine), toGuest(here)},
		{"vsock: 128 MiB to the host", "a UNIX socket on the host", emulated, "MiB/s", toHost(machine), toHost(here)},
		{"vsock: round trip", "a UNIX socket on the host", "two wake-ups of the guest", "ms", trip(machine), trip(here)},
		{"vsock: connections, each with an echo", "a UNIX socket on the host", emulated, "1/s", connect(machine), connect(here)},
		{"published port: 128 MiB to a process that only reads", "the host's loopback", emulated, "MiB/s", toGuest(port), toGuest(local)},
		{"published port: 128 MiB from a process that only writes", "the host's loopback", emulated, "MiB/s", toHost(port), toHost(local)},
		{"published port: round trip", "the host's loopback", "four wake-ups of the guest", "ms", trip(port), trip(local)},
		{"published port: connections, each with an echo", "the host's loopback", emulated, "1/s", connect(port), connect(local)},
	}
}

// dialFunc opens a connection to a port.
type dialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// lazily is a peer that starts with its first connection: not every row is
// always measured.
func lazily(start func(context.Context) (dialFunc, error)) speed.Peer {
	var (
		once sync.Once
		dial dialFunc
		err  error
	)
	return speed.Peer{Dial: func(ctx context.Context, port uint32) (net.Conn, error) {
		once.Do(func() { dial, err = start(ctx) })
		if err != nil {
			return nil, err
		}
		return dial(ctx, port)
	}}
}

// unixPeer serves UNIX sockets from this process.
func (b *bench) unixPeer(context.Context) (dialFunc, error) {
	path := func(port uint32) string { return filepath.Join(b.dir, strconv.Itoa(int(port))) }
	err := servePeer(func(port uint32) (net.Listener, error) { return net.Listen("unix", path(port)) })
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path(port))
	}, err
}

// tcpPeer serves the loopback from this process.
func (b *bench) tcpPeer(context.Context) (dialFunc, error) {
	addr := map[uint32]string{}
	err := servePeer(func(port uint32) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			addr[port] = l.Addr().String()
		}
		return l, err
	})
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr[port])
	}, err
}

// servePeer serves vm/vmtest/guest's commands until the process ends, and
// returns when it listens.
func servePeer(listen func(port uint32) (net.Listener, error)) error {
	ready, failed := make(chan bool), make(chan error, 1)
	go func() {
		failed <- guest.Serve(context.Background(), guest.Env{
			Listen: listen,
			Dial: func(uint32) (net.Conn, error) {
				close(ready)
				c, _ := net.Pipe()
				return c, nil
			},
		})
	}()
	select {
	case <-ready:
		return nil
	case err := <-failed:
		return err
	}
}

// bareMachine boots the product's kernel with an init that serves vsock and does
// nothing else.
func (b *bench) bareMachine(ctx context.Context) (dialFunc, error) {
	initrd, err := image.Make(b.dir, b.bundle)
	if err != nil {
		return nil, err
	}
	m, err := (&qemu.Driver{}).Boot(ctx, vm.Config{Kernel: b.bundle.Kernel, Initrd: initrd, CPUs: 2, Memory: 512 << 20})
	if err != nil {
		return nil, err
	}
	b.bare = m
	l, err := m.Listen(guest.ReadyPort)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	c, err := l.Accept()
	if err != nil {
		return nil, fmt.Errorf("wait for the guest: %w", err)
	}
	return m.Dial, c.Close()
}

// container starts the echo program in a container with a published port.
func (b *bench) container(ctx context.Context) (dialFunc, error) {
	if err := image.Build(filepath.Join(b.share, "echo"), "sampan/cmd/sampan-bench/echo", b.bundle.Manifest.Arch); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	err = b.do(ctx, "run", "-d", "--name", "echo", "-v", b.share+":/share:ro", "-p", fmt.Sprintf("%s:%d", addr, guest.CommandPort), "busybox", "/share/echo")
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _ uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	for { // until it listens, the port answers with a reset
		_, err := speed.Peer{Dial: dial}.RoundTrip(ctx, 1)
		if err == nil {
			return dial, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
