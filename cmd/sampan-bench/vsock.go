package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	connections = 50    // one after the other, as often as there are at a time:
	few, crowd  = 4, 32 // QEMU's user-mode networking resets more than a few
	streamSize  = 64 << 20
)

// userMode is the limit of what Sampan does in QEMU's place.
const userMode = "QEMU's user-mode networking to the same process"

// A pair is the same work on two peers.
type pair struct {
	name, limit  string
	bound        [5]string // of each row: to the guest, to the host, round trip, request, connections
	atOnce       int       // connections
	ours, theirs speed.Peer
}

// vsockRows measure connections, without and with what is around them in the
// product: the bare device, to a guest whose init does nothing else, with one
// processor and with two; and the way through a published port into a container.
func (b *bench) vsockRows() []row {
	const (
		emulated = "the guest's system calls and copies, under emulation"
		small    = "the guest's buffers of 4 KiB"
	)
	const packets, sockets = "the guest's six packets and one goroutine for each", "the agent's and the container's sockets"
	bare := [5]string{small, emulated, "the guest's interrupt, two threads' wake-ups, and a credit update for each read", packets, packets}
	published := [5]string{"the guest's TCP stack and copies, behind vsock's buffers of 4 KiB", "the guest's TCP stack and copies", "four wake-ups of the guest: agent and process, both ways", sockets, sockets}
	var pairs []pair
	var two speed.Peer
	for _, cpus := range []int{1, 2} {
		dial, user := b.bareMachine(cpus)
		two = lazily(dial)
		pairs = append(pairs, pair{fmt.Sprintf("vsock, processors: %d", cpus), userMode, bare, few, two, lazily(user)})
	}
	port, user := b.container()
	pairs = append(pairs,
		pair{"vsock, processors: 2", "a UNIX socket on the host", bare, crowd, two, lazily(b.unixPeer)},
		pair{"published port", userMode, published, few, lazily(port), lazily(user)},
		pair{"published port", "the host's loopback", published, crowd, lazily(port), lazily(b.tcpPeer)})
	var rows []row
	for _, p := range pairs {
		rows = append(rows, p.rows()...)
	}
	return append(rows, row{"published port: round trip", "another process of the container that asks it", published[2], "ms",
		func(ctx context.Context) (float64, error) { return lazily(port).RoundTrip(ctx, roundTrips) },
		func(ctx context.Context) (float64, error) {
			if _, err := port(ctx); err != nil {
				return 0, err
			}
			return b.roundTripInside(ctx)
		}})
}

// roundTripInside is the echo program's answer to a process beside it, in
// milliseconds.
func (b *bench) roundTripInside(ctx context.Context) (float64, error) {
	out, err := b.output(ctx, "exec", "echo", "/share/echo", "trip", strconv.Itoa(roundTrips))
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

func (p pair) rows() []row {
	type measure func(context.Context) (float64, error)
	var rows []row
	for i, m := range []struct {
		name, unit string
		f          func(speed.Peer) measure
	}{
		{"64 MiB to a process that only reads", "MiB/s", func(p speed.Peer) measure {
			return func(ctx context.Context) (float64, error) { return p.ToGuest(ctx, streamSize) }
		}},
		{"64 MiB from a process that only writes", "MiB/s", func(p speed.Peer) measure {
			return func(ctx context.Context) (float64, error) { return p.ToHost(ctx, streamSize) }
		}},
		{"round trip", "ms", func(p speed.Peer) measure {
			return func(ctx context.Context) (float64, error) { return p.RoundTrip(ctx, roundTrips) }
		}},
		{"a request, with a connection of its own", "ms", func(peer speed.Peer) measure {
			return func(ctx context.Context) (float64, error) {
				rate, err := peer.Connections(ctx, connections, 1)
				return 1000 / rate, err
			}
		}},
		{fmt.Sprintf("connections, %d at a time, each with an echo", p.atOnce), "1/s", func(peer speed.Peer) measure {
			return func(ctx context.Context) (float64, error) {
				return peer.Connections(ctx, connections*p.atOnce, p.atOnce)
			}
		}},
	} {
		rows = append(rows, row{p.name + ": " + m.name, p.limit, p.bound[i], m.unit, m.f(p.ours), m.f(p.theirs)})
	}
	return rows
}

// dialFunc opens a connection to a port.
type dialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// lazily is a peer that starts with its first connection: not every row is
// always measured.
func lazily(start startFunc) speed.Peer {
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

// startFunc makes a peer ready, and returns how to dial it.
type startFunc func(context.Context) (dialFunc, error)

// bareMachine is the product's kernel with an init that serves vsock, and TCP
// behind QEMU's user-mode networking, and does nothing else. Whichever is needed
// first boots it.
func (b *bench) bareMachine(cpus int) (viaVsock, viaUser startFunc) {
	var m vm.Machine
	var addr string
	start := func(ctx context.Context) error {
		if m != nil {
			return nil
		}
		var err error
		m, addr, err = b.bootBare(ctx, cpus)
		return err
	}
	viaVsock = func(ctx context.Context) (dialFunc, error) {
		if err := start(ctx); err != nil {
			return nil, err
		}
		return m.Dial, nil
	}
	viaUser = func(ctx context.Context) (dialFunc, error) {
		if err := start(ctx); err != nil {
			return nil, err
		}
		return dialer(addr), nil
	}
	return viaVsock, viaUser
}

func (b *bench) bootBare(ctx context.Context, cpus int) (_ vm.Machine, addr string, err error) {
	dir, err := os.MkdirTemp(b.dir, "bare-")
	if err != nil {
		return nil, "", err
	}
	initrd, err := image.Make(dir, b.bundle)
	if err != nil {
		return nil, "", err
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	driver := &qemu.Driver{Extra: []string{
		"-netdev", fmt.Sprintf("user,id=user,ipv6=off,net=10.0.2.0/24,dhcpstart=10.0.2.15,hostfwd=tcp:%s-10.0.2.15:%d", addr, guest.CommandPort),
		"-device", "virtio-net-pci,netdev=user,romfile=",
	}}
	m, err := driver.Boot(ctx, vm.Config{Kernel: b.bundle.Kernel, Initrd: initrd, CPUs: cpus, Memory: 512 << 20, Cmdline: "peer.net=10.0.2.15/24"})
	if err != nil {
		return nil, "", err
	}
	b.bare = append(b.bare, m)
	l, err := m.Listen(guest.ReadyPort)
	if err != nil {
		return nil, "", err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	c, err := l.Accept()
	if err != nil {
		return nil, "", fmt.Errorf("wait for the guest: %w", err)
	}
	return m, addr, c.Close()
}

// container is the echo program in a container, through a published port and
// through QEMU's user-mode networking.
func (b *bench) container() (viaPort, viaUser startFunc) {
	var port, user string
	start := func(ctx context.Context) error {
		if port != "" {
			return nil
		}
		var err error
		port, user, err = b.startEcho(ctx)
		return err
	}
	side := func(addr *string) startFunc {
		return func(ctx context.Context) (dialFunc, error) {
			if err := start(ctx); err != nil {
				return nil, err
			}
			return dialer(*addr), nil
		}
	}
	return side(&port), side(&user)
}

func (b *bench) startEcho(ctx context.Context) (port, user string, err error) {
	if err := image.Build(filepath.Join(b.share, "echo"), "sampan/cmd/sampan-bench/echo", b.bundle.Manifest.Arch); err != nil {
		return "", "", err
	}
	n, err := freePort()
	if err != nil {
		return "", "", err
	}
	port = fmt.Sprintf("127.0.0.1:%d", n)
	err = b.do(ctx, "run", "-d", "--name", "echo", "-v", b.share+":/share:ro", "-p", fmt.Sprintf("%s:%d", port, guest.CommandPort), "busybox", "/share/echo")
	if err != nil {
		return "", "", err
	}
	if user, err = b.userAddr(ctx, "echo", guest.CommandPort); err != nil {
		return "", "", err
	}
	for { // until it listens, the port answers with a reset
		_, err := speed.Peer{Dial: dialer(port)}.RoundTrip(ctx, 1)
		if err == nil {
			return port, user, nil
		}
		select {
		case <-ctx.Done():
			return "", "", err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
