package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sampan/guest/network/dns"
)

// resolverIP is where containers ask for names, as with Docker.
const resolverIP = "127.0.0.11"

// serveNames starts a container's server of names. Its sockets are in the
// container's namespace, on ports of the kernel's choice: 53 stays free for a
// name server of the container's own, and leads to them by a rule.
func (n *Network) serveNames(b *box) (*dns.Server, error) {
	var udp net.PacketConn
	var tcp net.Listener
	err := inside(b.ns, func() (err error) {
		if udp, err = net.ListenPacket("udp4", resolverIP+":0"); err == nil {
			tcp, err = net.Listen("tcp4", resolverIP+":0")
		}
		return err
	})
	if err == nil {
		err = redirect(b.ns, udp.LocalAddr().(*net.UDPAddr).Port, tcp.Addr().(*net.TCPAddr).Port)
	}
	if err != nil {
		if udp != nil {
			udp.Close()
		}
		if tcp != nil {
			tcp.Close()
		}
		return nil, err
	}
	v := &view{n, b}
	return dns.Serve(dns.Config{Names: v, Servers: v.servers, Dial: v.dial}, udp, tcp), nil
}

// inside runs f on a thread that is in a network namespace. What f opens stays
// there.
func inside(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// view is what one container sees of the names.
type view struct {
	n *Network
	b *box
}

// Lookup finds a name in the container's networks, one after the other, as
// Docker does. Those who share it take turns in being the first.
func (v *view) Lookup(name string) (addrs []netip.Addr, known bool) {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	for _, e := range v.b.ends {
		if !e.net.spec.Resolve {
			continue
		}
		want := name
		if target := linked(e.spec.Links, name); target != "" {
			want = strings.ToLower(target)
		}
		short, _ := strings.CutSuffix(want, "."+strings.ToLower(e.net.spec.Name))
		for _, id := range slices.Sorted(maps.Keys(e.net.ends)) {
			o := e.net.ends[id]
			if slices.ContainsFunc(o.spec.Names, func(s string) bool { s = strings.ToLower(s); return s == want || s == short }) {
				addrs, known = append(addrs, o.addrs...), true
			}
		}
		if known {
			break
		}
	}
	if len(addrs) > 1 {
		turn := int(v.n.turns.Add(1)) % len(addrs)
		addrs = append(slices.Clone(addrs[turn:]), addrs[:turn]...)
	}
	return addrs, known
}

func linked(links map[string]string, name string) string {
	for alias, target := range links {
		if strings.ToLower(alias) == name {
			return target
		}
	}
	return ""
}

// Reverse finds an address in the container's networks.
func (v *view) Reverse(addr netip.Addr) string {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	for _, e := range v.b.ends {
		if !e.net.spec.Resolve {
			continue
		}
		for _, o := range e.net.ends {
			if slices.Contains(o.addrs, addr) && len(o.spec.Names) > 0 {
				return o.spec.Names[0] + "." + e.net.spec.Name
			}
		}
	}
	return ""
}

// servers are asked for other names. A container whose networks are all
// internal asks nobody: questions, too, carry data out.
func (v *view) servers() []string {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	if !slices.ContainsFunc(v.b.ends, func(e *endpoint) bool { return !e.net.spec.Internal }) {
		return nil
	}
	if len(v.b.servers) > 0 {
		return v.b.servers
	}
	return v.n.servers
}

// dial reaches the uplink's servers from the guest, and the container's own
// from within it.
func (v *view) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	v.n.mu.Lock()
	own := len(v.b.servers) > 0
	v.n.mu.Unlock()
	var d net.Dialer
	if !own {
		return d.DialContext(ctx, network, address)
	}
	ns, err := v.b.namespace()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = inside(ns, func() (err error) {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// namespace is a copy of ns: Leave, which closes ns, waits for the server, and
// so must not be waited for here.
func (b *box) namespace() (*os.File, error) {
	fd, err := unix.FcntlInt(b.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netns"), nil
}
