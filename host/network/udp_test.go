package network

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"sampan/proto"
)

// echoes dials an agent whose container sends each datagram back, after the
// number of the flow that it came by. ended receives each flow's end.
func echoes(t *testing.T, ended chan<- int) func(context.Context) (net.Conn, error) {
	flows := 0
	return func(context.Context) (net.Conn, error) {
		ours, theirs := unixPair(t)
		ours.SetDeadline(time.Time{})
		theirs.SetDeadline(time.Time{})
		flows++
		number := flows
		go func() {
			defer theirs.Close()
			r := bufio.NewReader(theirs)
			for {
				b, err := proto.ReadDatagram(r, nil)
				if err != nil {
					break
				}
				theirs.Write(proto.AppendDatagram(nil, fmt.Appendf(nil, "%d %s", number, b)))
			}
			if ended != nil {
				ended <- number
			}
		}()
		return ours, nil
	}
}

func dialUDP(t *testing.T, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func ask(t *testing.T, c *net.UDPConn, question string) string {
	t.Helper()
	if _, err := c.Write([]byte(question)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, proto.MaxDatagram)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// Each client has a flow of its own, and a datagram stays one, of any size.
func TestDatagrams(t *testing.T) {
	p := publishSpec(t, Spec{Proto: "udp", HostIP: loopback, Dial: echoes(t, nil)})
	one, two := dialUDP(t, p.Addrs()[0]), dialUDP(t, p.Addrs()[0])
	for _, c := range []struct {
		conn           *net.UDPConn
		question, want string
	}{
		{one, "a", "1 a"}, {two, "b", "2 b"}, {one, "", "1 "}, {one, "c", "1 c"},
	} {
		if got := ask(t, c.conn, c.question); got != c.want {
			t.Errorf("%q: answer %q, want %q", c.question, got, c.want)
		}
	}
	large := bytes.Repeat([]byte("x"), proto.MaxDatagram-2)
	if got := ask(t, two, string(large)); got != "2 "+string(large) {
		t.Errorf("of the largest datagram %d bytes came back", len(got))
	}
}

// What was sent to one of several addresses is answered from there: a client
// that is connected receives nothing else.
func TestAnswersFromWhereAsked(t *testing.T) {
	p, err := NewPorts(slog.Default()).Publish(Spec{Proto: "udp", Dial: echoes(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	addrs := []string{"127.0.0.1", "127.0.0.2"}
	if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
		ln.Close()
		addrs = append(addrs, "::1")
	} else {
		t.Logf("no IPv6 here, its half is left out: %v", err)
	}
	for i, a := range addrs {
		c := dialUDP(t, netip.AddrPortFrom(netip.MustParseAddr(a), p.Addrs()[0].Port()))
		if got, want := ask(t, c, "x"), fmt.Sprintf("%d x", i+1); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
}

// A flow that is silent ends, and the client's next datagram begins another;
// with too many the one that has been silent longest ends.
func TestFlowsEnd(t *testing.T) {
	ended := make(chan int, maxFlows+2)
	spec := Spec{Proto: "udp", HostIP: loopback, Dial: echoes(t, ended)}
	s, err := listenUDP(spec)
	if err != nil {
		t.Fatal(err)
	}
	s.(*udpSocket).idle = time.Second
	p := &Port{spec: spec, ports: NewPorts(slog.New(slog.DiscardHandler)), addrs: s.Addrs()}
	p.ctx, p.cancel = context.WithCancel(t.Context())
	p.wg.Go(func() { p.run(s) })
	t.Cleanup(p.Close)
	c := dialUDP(t, p.Addrs()[0])
	if got := ask(t, c, "x"); got != "1 x" {
		t.Errorf("%q", got)
	}
	if n := <-ended; n != 1 {
		t.Errorf("flow %d ended", n)
	}
	if got := ask(t, c, "x"); got != "2 x" {
		t.Errorf("after the end: %q", got)
	}
}

func TestFlowsBounded(t *testing.T) {
	p := &Port{spec: Spec{Proto: "udp", Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}, ports: NewPorts(slog.New(slog.DiscardHandler))}
	f := &flows{port: p, idle: time.Hour, open: map[flowKey]*flow{}}
	f.ctx, f.cancel = context.WithCancel(t.Context())
	key := func(n int) flowKey {
		return flowKey{client: client{addr: netip.AddrPortFrom(loopback, uint16(n))}}
	}
	for n := range maxFlows + 1 {
		f.take(key(n), []byte("x"))
	}
	for range 2 * maxQueued {
		f.take(key(maxFlows), []byte("x"))
	}
	f.mu.Lock()
	if len(f.open) != maxFlows || f.open[key(0)] != nil || f.open[key(maxFlows)] == nil {
		t.Errorf("%d flows, the first among them: %v", len(f.open), f.open[key(0)] != nil)
	}
	if n := len(f.open[key(maxFlows)].queue); n != maxQueued {
		t.Errorf("%d datagrams wait, want %d", n, maxQueued)
	}
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
	if n := f.queued.Load(); n != 0 || len(f.open) != 0 {
		t.Errorf("%d bytes and %d flows are left", n, len(f.open))
	}
}
