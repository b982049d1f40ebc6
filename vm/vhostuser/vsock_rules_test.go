package vhostuser

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// accepted is a device with one connection that the guest has opened, of which
// it has taken the response.
func accepted(t testing.TB) (v *Vsock, key connKey, c net.Conn) {
	t.Helper()
	v = NewVsock(3)
	t.Cleanup(func() { v.Close() })
	l, err := v.Listen(80)
	must(t, err)
	key = connKey{host: 80, guest: 7}
	feed(t, v, guestPacket(key, opRequest, 0, nil))
	c, err = l.Accept()
	must(t, err)
	if h, _ := next(t, v, 100); h.op != opResponse {
		t.Fatalf("packet %d, want a response", h.op)
	}
	return v, key, c
}

// TestPacketRules: how each packet is answered, and what the connection's user
// then reads.
func TestPacketRules(t *testing.T) {
	type packet struct {
		op    uint16
		flags uint32
		data  string
	}
	for name, tt := range map[string]struct {
		packets []packet
		answer  uint16
		read    string
		err     error // nil: nothing to read yet
	}{
		"data":                {[]packet{{opData, 0, "hello"}}, 0, "hello", nil},
		"no data":             {[]packet{{opData, 0, ""}}, 0, "", nil},
		"credit request":      {[]packet{{opCreditRequest, 0, ""}}, opCreditUpdate, "", nil},
		"credit update":       {[]packet{{opCreditUpdate, 0, ""}}, 0, "", nil},
		"reset":               {[]packet{{opData, 0, "a"}, {opReset, 0, ""}}, 0, "a", syscall.ECONNRESET},
		"end of sending":      {[]packet{{opData, 0, "a"}, {opShutdown, shutSend, ""}}, 0, "a", io.EOF},
		"end of receiving":    {[]packet{{opShutdown, shutReceive, ""}, {opData, 0, "a"}}, 0, "a", nil},
		"end of both":         {[]packet{{opData, 0, "a"}, {opShutdown, shutBoth, ""}}, opReset, "a", io.EOF},
		"one after the other": {[]packet{{opShutdown, shutReceive, ""}, {opShutdown, shutSend, ""}}, opReset, "", io.EOF},
		"no flags":            {[]packet{{opShutdown, 0, ""}}, 0, "", nil},
		"odd flags":           {[]packet{{opShutdown, 0xfc, ""}}, 0, "", nil},
		"data after the end":  {[]packet{{opShutdown, shutSend, ""}, {opData, 0, "a"}}, opReset, "", io.EOF},
		"second request":      {[]packet{{opRequest, 0, ""}}, opReset, "", syscall.ECONNRESET},
		"second response":     {[]packet{{opResponse, 0, ""}}, opReset, "", syscall.ECONNRESET},
		"no such packet":      {[]packet{{99, 0, ""}}, opReset, "", syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			v, key, c := accepted(t)
			for _, p := range tt.packets {
				feed(t, v, guestPacket(key, p.op, p.flags, []byte(p.data)))
			}
			if h, _ := next(t, v, 100); h.op != tt.answer || h.op != 0 && (h.srcPort != 80 || h.dstPort != 7) {
				t.Errorf("answered by %d, want %d", h.op, tt.answer)
			}
			must(t, c.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
			got, err := io.ReadAll(c)
			if string(got) != tt.read {
				t.Errorf("read %q, want %q", got, tt.read)
			}
			var slow net.Error
			switch {
			case tt.err == nil && !(errors.As(err, &slow) && slow.Timeout()):
				t.Errorf("read error %v, want a timeout", err)
			case tt.err == io.EOF && err != nil, tt.err != nil && tt.err != io.EOF && !errors.Is(err, tt.err):
				t.Errorf("read error %v, want %v", err, tt.err)
			}
		})
	}
}

// TestUnknownConnections: what belongs to no connection is reset, but a reset
// is not answered, or two sides could do so for ever.
func TestUnknownConnections(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	for op, want := range map[uint16]uint16{
		opRequest: opReset, opResponse: opReset, opData: opReset, opShutdown: opReset, opCreditRequest: opReset, opReset: 0,
	} {
		for _, typ := range []uint16{typeStream, 2} { // 2 is SOCK_SEQPACKET, not offered
			h, _, _ := parseVsock(guestPacket(connKey{80, 7}, op, 0, nil))
			h.typ = typ
			v.packet(h, nil)
			if got, _ := next(t, v, 100); got.op != want || got.op != 0 && got.typ != typ {
				t.Errorf("packet %d of type %d is answered by %d of type %d", op, typ, got.op, got.typ)
			}
		}
	}
}

// TestEndOfReceiving: once the guest takes no more, writes fail, and what is
// buffered for it is dropped.
func TestEndOfReceiving(t *testing.T) {
	v, key, c := accepted(t)
	_, err := c.Write([]byte("dropped"))
	must(t, err)
	feed(t, v, guestPacket(key, opShutdown, shutReceive, nil))
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
	if h, _ := next(t, v, 100); h.op != 0 {
		t.Errorf("packet %d to a guest that takes none", h.op)
	}
}

// TestCreditUpdates: the guest hears before it runs out of credit, which is the
// least of three: our buffer, its own, and what kernels cap it by.
func TestCreditUpdates(t *testing.T) {
	for _, tt := range []struct{ alloc, due int }{
		{64 << 10, 32 << 10}, {256 << 10, 128 << 10}, {4 << 20, 128 << 10},
	} {
		v, key, c := accepted(t)
		h, _, _ := parseVsock(guestPacket(key, opCreditUpdate, 0, nil))
		h.alloc = uint32(tt.alloc)
		v.packet(h, nil)
		h.op, h.len = opData, uint32(tt.due)
		v.packet(h, [][]byte{make([]byte, tt.due)})
		for _, read := range []struct {
			n    int
			want uint16
		}{{tt.due - 1, 0}, {1, opCreditUpdate}} {
			_, err := io.ReadFull(c, make([]byte, read.n))
			must(t, err)
			if got, _ := next(t, v, 100); got.op != read.want {
				t.Errorf("guest with a buffer of %d: packet %d after %d bytes, want %d", tt.alloc, got.op, read.n, read.want)
			}
		}
	}
}

// TestShrinkingCredit: a guest may take less than is already under way, and
// counters run over.
func TestShrinkingCredit(t *testing.T) {
	v, key, c := accepted(t)
	vc := c.(*vsockConn)
	vc.transmitted, vc.received, vc.consumed, vc.reported = 1<<32-10, 1<<32-10, 1<<32-10, 1<<32-10
	credit := func(alloc, fwd uint32) {
		h, _, _ := parseVsock(guestPacket(key, opCreditUpdate, 0, nil))
		h.alloc, h.fwd = alloc, fwd
		v.packet(h, nil)
	}
	expect := func(want int) {
		t.Helper()
		_, data := next(t, v, 1000)
		if len(data) != want {
			t.Errorf("sent %d bytes, want %d", len(data), want)
		}
	}
	_, err := c.Write(make([]byte, 300))
	must(t, err)
	credit(100, 1<<32-10)
	expect(100)
	credit(50, 1<<32-10) // 100 are under way
	expect(0)
	credit(50, 70) // 20 are under way
	expect(30)
	credit(0, 90)
	expect(0)
	credit(1000, 90)
	expect(170)
}

// TestLinger: a closed connection goes when the guest makes no progress any
// more, and not while it does.
func TestLinger(t *testing.T) {
	count := func(v *Vsock) int {
		synctest.Wait()
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.conns)
	}
	for name, tt := range map[string]struct {
		data int // that the guest has not taken
		life time.Duration
	}{"data": {100, 2 * lingerData}, "no data": {0, lingerReset}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, _, c := accepted(t)
				begin := time.Now()
				_, err := c.Write(make([]byte, tt.data))
				must(t, err)
				must(t, c.Close())
				if tt.data > 0 {
					time.Sleep(lingerData / 2)
					next(t, v, vsockHeaderSize+10) // takes some, so the wait is doubled
				} else if h, _ := next(t, v, 100); h.op != opShutdown {
					t.Errorf("packet %d, want a shutdown", h.op)
				}
				time.Sleep(tt.life - time.Second - time.Since(begin))
				if count(v) != 1 {
					t.Error("gone too early")
				}
				time.Sleep(2 * time.Second)
				if n := count(v); n != 0 {
					t.Errorf("%d connections after %s", n, time.Since(begin))
				}
				if h, _ := next(t, v, 100); h.op != opReset {
					t.Errorf("packet %d, want a reset", h.op)
				}
			})
		})
	}
}

// TestClosedTakesData: what comes for a closed connection is swallowed, and
// acknowledged, so that the guest's writer does not stall before it hears.
func TestClosedTakesData(t *testing.T) {
	v, key, c := accepted(t)
	_, err := c.Write([]byte("last words"))
	must(t, err)
	must(t, c.Close())
	for range 100 {
		feed(t, v, guestPacket(key, opData, 0, make([]byte, 64<<10)))
	}
	h, data := next(t, v, 100)
	if h.op != opData || string(data) != "last words" || h.fwd != 100*64<<10 {
		t.Errorf("packet %d %q, %d forwarded", h.op, data, h.fwd)
	}
}

// TestPorts: a dial's port is neither a listener's nor a reserved one.
func TestPorts(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	v.lastPort = 1<<32 - 3
	_, err := v.Listen(firstEphemeral + 1)
	must(t, err)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, want := range []uint32{1<<32 - 2, firstEphemeral, firstEphemeral + 2} {
		if got := v.nextPort(); got != want {
			t.Errorf("port %d, want %d", got, want)
		}
	}
}

// TestListenerClose: who is in the backlog is reset, and so is who comes later.
func TestListenerClose(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	l, err := v.Listen(80)
	must(t, err)
	feed(t, v, guestPacket(connKey{80, 1}, opRequest, 0, nil))
	must(t, l.Close())
	feed(t, v, guestPacket(connKey{80, 2}, opRequest, 0, nil))
	for _, want := range []uint32{1, 2} {
		if h, _ := next(t, v, 100); h.op != opReset || h.dstPort != want {
			t.Errorf("packet %d for %d, want a reset for %d", h.op, h.dstPort, want)
		}
	}
	if len(v.conns) != 0 {
		t.Errorf("%d connections are left", len(v.conns))
	}
}

// TestMostConnections: at the limit the guest's requests are refused, and the
// host's dials fail at once; what all buffers can grow to is known.
func TestMostConnections(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	l, err := v.Listen(80)
	must(t, err)
	for i := range uint32(maxConns) {
		feed(t, v, guestPacket(connKey{80, i}, opRequest, 0, nil))
		_, err := l.Accept()
		must(t, err)
		if h, _ := next(t, v, 100); h.op != opResponse {
			t.Fatalf("connection %d: packet %d", i, h.op)
		}
	}
	feed(t, v, guestPacket(connKey{80, maxConns}, opRequest, 0, nil))
	if h, _ := next(t, v, 100); h.op != opReset {
		t.Errorf("packet %d, want a reset", h.op)
	}
	if _, err := v.Dial(t.Context(), 1); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("dial: %v, want ENOBUFS", err)
	}
	held := 0
	for _, c := range v.conns {
		held += int(c.alloc)
	}
	if want := largeConns*largeBuffer + (maxConns-largeConns)*smallBuffer; held > want {
		t.Errorf("the guest may fill %d bytes, want at most %d", held, want)
	}
}
