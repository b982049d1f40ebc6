package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

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
	failed map[uint16]error
}

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

// watchListeners mirrors a guest's ports until ctx or the guest ends.
func (e *Engine) watchListeners(ctx context.Context, g Guest) {
	open := map[uint16][]*network.Port{}
	failed := map[uint16]error{}
	defer func() {
		for _, ports := range open {
			closeAll(ports)
		}
		e.mirror.note(nil)
	}()
	stream, err := g.Listeners(ctx)
	if err != nil {
		e.log.Warn("the ports of containers in the host's network are not mirrored", "error", err)
		return
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	for dec := json.NewDecoder(stream); ; {
		var now proto.Listeners
		if err := dec.Decode(&now); err != nil {
			if ctx.Err() == nil {
				select {
				case <-g.Done():
				default:
					e.log.Warn("the ports of containers in the host's network are no longer mirrored", "error", err)
				}
			}
			return
		}
		for port, ports := range open {
			if !slices.Contains(now.TCP, port) {
				closeAll(ports)
				delete(open, port)
			}
		}
		before := failed
		failed = map[uint16]error{}
		for _, port := range now.TCP {
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
			open[port] = ports
		}
		e.mirror.note(failed)
	}
}

// mirrorPort listens on the host's loopback for one of the guest's ports.
func (e *Engine) mirrorPort(g Guest, port uint16) ([]*network.Port, error) {
	var ports []*network.Port
	for _, ip := range loopbacks {
		p, err := e.ports.Publish(network.Spec{
			Proto: "tcp", HostIP: ip, HostPort: port, Owner: mirrorOwner,
			Dial: func(ctx context.Context) (net.Conn, error) {
				return g.Dial(ctx, "tcp", netip.AddrPortFrom(loopbacks[0], port).String())
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

func (m *mirror) note(failed map[uint16]error) {
	m.noteMu.Lock()
	defer m.noteMu.Unlock()
	m.failed = failed
}

func (m *mirror) warnings() []string {
	m.noteMu.Lock()
	defer m.noteMu.Unlock()
	var list []string
	for _, port := range slices.Sorted(maps.Keys(m.failed)) {
		list = append(list, fmt.Sprintf("port %d of the host's network is not mirrored: %v", port, m.failed[port]))
	}
	return list
}
