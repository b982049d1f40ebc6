package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sampan/vm"
)

// ErrInUse is wrapped by errors about a host port that somebody else holds.
var ErrInUse = errors.New("port is already allocated")

// InUseError tells who holds a port. It wraps ErrInUse.
type InUseError struct {
	Addr  netip.AddrPort // what was asked for
	Proto string
	// Owner is the Spec.Owner of another port of ours that holds it; "" when a
	// process of the host does.
	Owner string
	// Process describes that process as far as the system tells; may be "".
	Process string
}

// Error is worded as Docker's.
func (e *InUseError) Error() string {
	switch {
	case e.Owner != "":
		return fmt.Sprintf("Bind for %s failed: %v by %s", e.Addr, ErrInUse, e.Owner)
	case e.Process != "":
		return fmt.Sprintf("failed to bind host port %s/%s: address already in use by %s", e.Addr, e.Proto, e.Process)
	}
	return fmt.Sprintf("failed to bind host port %s/%s: address already in use", e.Addr, e.Proto)
}

// Unwrap returns ErrInUse.
func (e *InUseError) Unwrap() error { return ErrInUse }

const (
	// dialTimeout bounds the way from an accepted connection to the container.
	dialTimeout = 30 * time.Second
	// A port that fails is opened again after restartMin, twice that, and so on.
	restartMin = 100 * time.Millisecond
	restartMax = 10 * time.Second
	// dialTold is how long a port is told of after its last failed dial: without
	// clients nobody finds out that it works again.
	dialTold = 10 * time.Second
	// privileged is where ports begin that an ordinary user may listen on.
	privileged = 1024
)

// Spec is a port to publish. Fields are required but those marked optional.
type Spec struct {
	Proto string // "tcp" or "udp"
	// HostIP is where to listen. Optional: every address, IPv4 and IPv6.
	HostIP netip.Addr
	// HostPort is the port to listen on. Optional: any free port.
	HostPort uint16
	// Owner is whoever a conflict is to be told about, e.g. a container's ID.
	Owner string
	// ProxyProtocol says that each TCP connection to the container begins with
	// a PROXY protocol header, version 2, that tells the client's address.
	// Optional.
	ProxyProtocol bool
	// Dial connects to the container. A TCP connection should have CloseWrite;
	// one for UDP carries datagrams as proto.AppendDatagram frames them. An error
	// says that the way there doesn't work; where only nobody listens at its end,
	// the connection's first Read fails.
	Dial func(context.Context) (net.Conn, error)
}

// Ports are the published ports of one daemon. Its methods may be called from
// several goroutines.
type Ports struct {
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	open map[*Port]struct{}
}

// NewPorts returns an empty set.
func NewPorts(log *slog.Logger) *Ports {
	return &Ports{log: log, now: time.Now, open: map[*Port]struct{}{}}
}

// Port is a published port.
type Port struct {
	spec  Spec
	ports *Ports
	addrs []netip.AddrPort

	ctx    context.Context // of the port's whole life; ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	failing  atomic.Bool    // one of failures is set: a quick first look
	failures [parts]failure // guarded by ports.mu
}

// part is what can fail of a port, each by itself.
type part int

const (
	listening part = iota
	receiving4
	receiving6
	dialling
	parts
)

// failure is why a part of a port doesn't work at present.
type failure struct {
	err         error // nil: it works
	since, last time.Time
}

// Failure tells of a published port that doesn't work at present.
type Failure struct {
	Addr  netip.AddrPort
	Proto string
	Owner string
	Err   error
	Since time.Time
}

// socket is what a port listens with.
type socket interface {
	// Serve carries connections until the socket is closed; it returns why it
	// has ended.
	Serve(*Port) error
	// Addrs are where it listens, IPv4 first.
	Addrs() []netip.AddrPort
	io.Closer
}

// Publish listens on a host port and forwards what comes until Close. A
// listener that fails is made anew. The error for a port that is taken is an
// *InUseError.
func (ps *Ports) Publish(spec Spec) (*Port, error) {
	s, err := listen(spec)
	if err != nil {
		return nil, ps.explain(spec, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Port{spec: spec, ports: ps, addrs: s.Addrs(), ctx: ctx, cancel: cancel}
	ps.mu.Lock()
	ps.open[p] = struct{}{}
	ps.mu.Unlock()
	p.wg.Go(func() { p.run(s) })
	return p, nil
}

// listen opens the socket of a spec.
func listen(spec Spec) (socket, error) {
	switch spec.Proto {
	case "tcp":
		return listenTCP(spec)
	case "udp":
		return listenUDP(spec)
	}
	return nil, fmt.Errorf("publish %s port %d: %w", spec.Proto, spec.HostPort, vm.ErrUnsupported)
}

// explain words why a socket could not be opened.
func (ps *Ports) explain(spec Spec, err error) error {
	ip := spec.HostIP
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified() // as Docker puts it
	}
	at := netip.AddrPortFrom(ip, spec.HostPort)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e := &InUseError{Addr: at, Proto: spec.Proto, Owner: ps.owner(spec)}
		if e.Owner == "" {
			e.Process = holder(spec.Proto, spec.HostPort)
		}
		return e
	case errors.Is(err, syscall.EACCES) && spec.HostPort < privileged:
		// Not in the system's words: clients take them for those of exec, and
		// end with 126.
		return fmt.Errorf("failed to bind host port %s/%s: only root may listen below port %d here: choose a higher one%s", at, spec.Proto, privileged, allowPrivileged(spec.HostPort))
	case errors.Is(err, vm.ErrUnsupported):
		return err
	}
	return fmt.Errorf("failed to bind host port %s/%s: %w", at, spec.Proto, err)
}

// owner is who of us holds a port that a spec asks for; "" is nobody.
func (ps *Ports) owner(spec Spec) string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for p := range ps.open {
		if p.spec.Proto == spec.Proto && p.addrs[0].Port() == spec.HostPort && overlap(p.spec.HostIP, spec.HostIP) {
			return p.spec.Owner
		}
	}
	return ""
}

// overlap says whether two addresses to listen on exclude each other; the zero
// address is all of both families.
func overlap(a, b netip.Addr) bool {
	switch {
	case !a.IsValid(), !b.IsValid(), a == b:
		return true
	case a.Is4() != b.Is4():
		return false
	}
	return a.IsUnspecified() || b.IsUnspecified()
}

// Failing lists the ports that don't work at present.
func (ps *Ports) Failing() []Failure {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var list []Failure
	for p := range ps.open {
		for i, f := range p.failures {
			if f.err == nil || part(i) == dialling && ps.now().Sub(f.last) > dialTold {
				continue
			}
			list = append(list, Failure{Addr: p.addrs[0], Proto: p.spec.Proto, Owner: p.spec.Owner, Err: f.err, Since: f.since})
			break // one is enough to tell
		}
	}
	slices.SortFunc(list, func(a, b Failure) int {
		return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Proto, b.Proto))
	})
	return list
}

// Addrs are where the port listens, IPv4 first: one address, or the
// unspecified ones of both families.
func (p *Port) Addrs() []netip.AddrPort { return p.addrs }

// Close stops listening, resets the open connections and waits for their end.
// Idempotent.
func (p *Port) Close() {
	p.cancel()
	p.wg.Wait()
	p.ports.mu.Lock()
	delete(p.ports.open, p)
	p.ports.mu.Unlock()
}

// run serves a socket, and opens the next when it fails, until Close.
func (p *Port) run(s socket) {
	wait := restartMin
	for {
		began := time.Now()
		stop := context.AfterFunc(p.ctx, func() { s.Close() })
		err := s.Serve(p)
		stop()
		s.Close()
		if time.Since(began) > restartMax {
			wait = restartMin
		}
		for s = nil; s == nil; wait = min(2*wait, restartMax) {
			if p.ctx.Err() != nil {
				return
			}
			p.failed(listening, err)
			p.pause(wait)
			again := p.spec
			again.HostPort = p.addrs[0].Port()
			if s, err = listen(again); err != nil {
				s = nil
			}
		}
		p.works(listening, receiving4, receiving6)
	}
}

// dial opens a way to the container, and notes whether that works.
func (p *Port) dial(ctx context.Context) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := p.spec.Dial(limited)
	switch {
	case err == nil:
		p.works(dialling)
	case ctx.Err() == nil:
		p.failed(dialling, err)
	}
	return conn, err
}

// failed notes, and logs once, that a part of the port doesn't work.
func (p *Port) failed(what part, err error) {
	p.ports.mu.Lock()
	f := &p.failures[what]
	fresh := f.err == nil
	f.err, f.last = err, p.ports.now()
	if fresh {
		f.since = f.last
	}
	p.failing.Store(true)
	p.ports.mu.Unlock()
	if fresh {
		p.ports.log.Warn("published port fails: it is tried again", "port", p.addrs[0].String()+"/"+p.spec.Proto, "owner", p.spec.Owner, "error", err)
	}
}

// works takes back what failed noted of some parts.
func (p *Port) works(what ...part) {
	if !p.failing.Load() {
		return
	}
	var since time.Time
	p.ports.mu.Lock()
	for _, w := range what {
		if f := &p.failures[w]; f.err != nil {
			if since.IsZero() || f.since.Before(since) {
				since = f.since
			}
			*f = failure{}
		}
	}
	left := slices.ContainsFunc(p.failures[:], func(f failure) bool { return f.err != nil })
	p.failing.Store(left)
	after := p.ports.now().Sub(since)
	p.ports.mu.Unlock()
	if since.IsZero() {
		return
	}
	p.ports.log.Info("published port works again", "port", p.addrs[0].String()+"/"+p.spec.Proto, "owner", p.spec.Owner, "after", after.Round(time.Millisecond))
}

func (p *Port) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ctx.Done():
	}
}

// exhausted says whether an error is about this process's or the system's
// means, not about the socket.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// address is what to listen on, for the net package: the network's family is
// fixed unless both are wanted.
func address(spec Spec) (network, addr string) {
	if !spec.HostIP.IsValid() {
		return spec.Proto, fmt.Sprintf(":%d", spec.HostPort)
	}
	network = spec.Proto + "6"
	if spec.HostIP.Is4() {
		network = spec.Proto + "4"
	}
	return network, netip.AddrPortFrom(spec.HostIP, spec.HostPort).String()
}
