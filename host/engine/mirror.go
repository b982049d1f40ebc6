package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sampan/host/network"
	"sampan/proto"
)

// mirrorOwner is the owner of the mirrored ports.
const mirrorOwner = "host-network"

// mirror is what is shown on the host's loopback of the ports that containers
// in the host's network, which is the guest's, listen on: one watch for all of
// them, while there are any.
type mirror struct {
	mu     sync.Mutex
	guest  Guest
	users  int
	cancel context.CancelFunc
	done   chan struct{} // closed when the watch has ended

	noteMu sync.Mutex // taken by the watch, which mu's holder may wait for
	failed map[mirrored]error
}

// mirrored is a port that processes in the guest's own network listen on.
type mirrored struct {
	proto string // "tcp" or "udp"
	num   uint16
}

func (p mirrored) String() string { return fmt.Sprintf("%d/%s", p.num, p.proto) }

// loopbacks are where ports are mirrored; without IPv6 on the host, on the
// first.
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// mirrorPorts begins to watch a guest's ports, or joins who does. Each caller
// calls release.
func (e *Engine) mirrorPorts(g Guest) (release func()) {
	m := &e.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users > 0 && m.guest == g {
		m.users++
	} else {
		// Whatever was there is of a guest that has ended, and ends by itself.
		ctx, cancel := context.WithCancel(e.ctx)
		done := make(chan struct{})
		m.guest, m.users, m.cancel, m.done = g, 1, cancel, done
		e.wg.Go(func() {
			defer close(done)
			defer cancel()
			e.watchListeners(ctx, g)
		})
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.guest != g {
			return
		}
		if m.users--; m.users == 0 {
			m.cancel()
			<-m.done // the ports are free when the last container has ended
			m.guest = nil
		}
	})
}

// A port that is refused on the host is tried again after retryMin, twice that,
// and so on: whoever holds it may end at any time, of which nothing tells.
const (
	retryMin = 500 * time.Millisecond
	retryMax = 5 * time.Second
)

// watchListeners mirrors a guest's ports until ctx or the guest ends.
func (e *Engine) watchListeners(ctx context.Context, g Guest) {
	stream, err := g.Listeners(ctx)
	if err != nil {
		e.log.Warn("the ports of containers in the host's network are not mirrored", "error", err)
		return
	}
	changes := make(chan []mirrored)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(changes)
		if err := readListeners(ctx, stream, changes); err != nil && ctx.Err() == nil {
			select {
			case <-g.Done():
			default:
				e.log.Warn("the ports of containers in the host's network are no longer mirrored", "error", err)
			}
		}
	})
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer func() {
		stop()
		stream.Close()
		wg.Wait()
	}()
	e.mirrorChanges(g, changes)
}

// readListeners sends on what the guest tells, until the stream or ctx ends.
func readListeners(ctx context.Context, r io.Reader, changes chan<- []mirrored) error {
	for dec := json.NewDecoder(r); ; {
		var now proto.Listeners
		if err := dec.Decode(&now); err != nil {
			return err
		}
		var list []mirrored
		for _, port := range now.TCP {
			list = append(list, mirrored{"tcp", port})
		}
		for _, port := range now.UDP {
			list = append(list, mirrored{"udp", port})
		}
		select {
		case changes <- list:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mirrorChanges has each of the ports that were told last on the host, as far as
// they are free there, until changes is closed.
func (e *Engine) mirrorChanges(g Guest, changes <-chan []mirrored) {
	open := map[mirrored][]*network.Port{}
	defer func() {
		for _, ports := range open {
			closeAll(ports)
		}
		e.mirror.note(nil)
	}()
	var (
		want   []mirrored
		failed map[mirrored]error
		wait   = retryMin
		retry  <-chan time.Time // nil while nothing is refused
	)
	for {
		select {
		case now, more := <-changes:
			if !more {
				return
			}
			want, wait = now, retryMin
		case <-retry:
			wait = min(2*wait, retryMax)
		}
		for port, ports := range open {
			if !slices.Contains(want, port) {
				closeAll(ports)
				delete(open, port)
			}
		}
		failed = e.mirrorNew(g, want, open, failed)
		e.mirror.note(failed)
		retry = nil
		if len(failed) > 0 {
			retry = time.After(wait)
		}
	}
}

// mirrorNew opens what is wanted and not open yet, and returns what was refused;
// what was so before isn't logged again.
func (e *Engine) mirrorNew(g Guest, want []mirrored, open map[mirrored][]*network.Port, before map[mirrored]error) map[mirrored]error {
	failed := map[mirrored]error{}
	for _, port := range want {
		if open[port] != nil {
			continue
		}
		ports, err := e.mirrorPort(g, port)
		if err != nil {
			if failed[port] = err; before[port] == nil {
				e.log.Warn("a port of the host's network is not mirrored", "port", port, "error", err)
			}
			continue
		}
		if open[port] = ports; before[port] != nil {
			e.log.Info("a port of the host's network is mirrored now", "port", port)
		}
	}
	return failed
}

// mirrorPort listens on the host's loopback for one of the guest's ports.
func (e *Engine) mirrorPort(g Guest, port mirrored) ([]*network.Port, error) {
	var ports []*network.Port
	for _, ip := range loopbacks {
		p, err := e.ports.Publish(network.Spec{
			Proto: port.proto, HostIP: ip, HostPort: port.num, Owner: mirrorOwner,
			Dial: func(ctx context.Context) (net.Conn, error) {
				return g.Dial(ctx, port.proto, netip.AddrPortFrom(loopbacks[0], port.num).String())
			},
		})
		if err != nil && ip.Is4() {
			return nil, err
		}
		if err == nil {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

func closeAll(ports []*network.Port) {
	for _, p := range ports {
		p.Close()
	}
}

func (m *mirror) note(failed map[mirrored]error) {
	m.noteMu.Lock()
	defer m.noteMu.Unlock()
	m.failed = failed
}

func (m *mirror) warnings() []string {
	m.noteMu.Lock()
	defer m.noteMu.Unlock()
	var list []string
	for port, err := range m.failed {
		list = append(list, fmt.Sprintf("port %s of the host's network is not mirrored: %v", port, err))
	}
	slices.Sort(list)
	return list
}
