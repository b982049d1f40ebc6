package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// guestPacket makes a packet as the guest sends it.
func guestPacket(key connKey, op uint16, flags uint32, data []byte) [][]byte {
	h := vsockHeader{
		srcCID: 3, srcPort: key.guest, dstCID: 2, dstPort: key.host,
		len: uint32(len(data)), typ: typeStream, op: op, flags: flags, alloc: 64 << 10,
	}
	b := make([]byte, vsockHeaderSize)
	h.put([][]byte{b})
	return [][]byte{b[:10], b[10:], data}
}

// feed hands a packet to the device as receive does.
func feed(t testing.TB, v *Vsock, bufs [][]byte) {
	t.Helper()
	h, data, ok := parseVsock(bufs)
	if !ok {
		t.Fatal("malformed packet")
	}
	v.packet(h, data)
}

// next takes the device's next packet.
func next(t testing.TB, v *Vsock, size int) (vsockHeader, []byte) {
	t.Helper()
	b := make([]byte, size)
	n := v.fill([][]byte{b[:7], b[7:]})
	if n == 0 {
		return vsockHeader{}, nil
	}
	h, data, ok := parseVsock([][]byte{b[:n]})
	if !ok {
		t.Fatalf("the device sends %x", b[:n])
	}
	return h, bytes.Join(data, nil)
}

func TestResponseBeforeData(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	l, err := v.Listen(80)
	must(t, err)
	key := connKey{host: 80, guest: 7}
	feed(t, v, guestPacket(key, opRequest, 0, nil))
	c, err := l.Accept()
	must(t, err)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	must(t, c.Close())
	for _, want := range []uint16{opResponse, opData, opShutdown, 0} {
		if h, data := next(t, v, 100); h.op != want || want == opData && string(data) != "hello" {
			t.Fatalf("packet %d %q, want %d", h.op, data, want)
		}
	}
	feed(t, v, guestPacket(key, opReset, 0, nil))
	if len(v.conns) != 0 {
		t.Error("the connection outlives the guest's reset")
	}
}

// TestCredit never sends more than the guest takes, and tells in time what has
// been read.
func TestCredit(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	l, err := v.Listen(80)
	must(t, err)
	key := connKey{host: 80, guest: 7}
	feed(t, v, guestPacket(key, opRequest, 0, nil))
	c, err := l.Accept()
	must(t, err)
	next(t, v, 100)
	if _, err := c.Write(make([]byte, 200<<10)); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for {
		h, data := next(t, v, 4096)
		if h.op == 0 {
			break
		}
		sent += len(data)
	}
	if sent != 64<<10 {
		t.Errorf("sent %d bytes to a guest with room for %d", sent, 64<<10)
	}
	// The guest caps its credit by its own 64 KiB: after half of that it must hear.
	feed(t, v, guestPacket(key, opData, 0, make([]byte, 32<<10)))
	if h, _ := next(t, v, 100); h.op != 0 {
		t.Errorf("packet %d before anything was read", h.op)
	}
	if _, err := io.ReadFull(c, make([]byte, 32<<10)); err != nil {
		t.Fatal(err)
	}
	if h, _ := next(t, v, 100); h.op != opCreditUpdate || h.fwd != 32<<10 {
		t.Errorf("packet %d, %d forwarded; want a credit update", h.op, h.fwd)
	}
	// What exceeds the credit costs the connection.
	for range 2 {
		feed(t, v, guestPacket(key, opData, 0, make([]byte, largeBuffer*3/4)))
	}
	if h, _ := next(t, v, 100); h.op != opReset {
		t.Errorf("packet %d after too much data, want a reset", h.op)
	}
	if n, err := io.Copy(io.Discard, c); n != largeBuffer*3/4 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestDialEnds(t *testing.T) { synctest.Test(t, testDialEnds) }

func testDialEnds(t *testing.T) {
	v := NewVsock(3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := v.Dial(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial without a guest: %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := v.Dial(context.Background(), 1)
		failed <- err
	}()
	synctest.Wait() // it waits for the guest
	must(t, v.Close())
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial when the machine ends: %v", err)
	}
	if _, err := v.Dial(t.Context(), 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after the machine's end: %v", err)
	}
	if len(v.conns) != 0 {
		t.Errorf("%d connections left", len(v.conns))
	}
}

// TestGuestReset forgets the connections of the guest's earlier life, whichever
// ring starts first, and keeps the dial that waits for the guest.
func TestGuestReset(t *testing.T) {
	for _, first := range []int{receiveQueue, transmitQueue} {
		v := NewVsock(3)
		l, err := v.Listen(80)
		must(t, err)
		v.driverUp(first)
		v.driverUp(1 - first)
		feed(t, v, guestPacket(connKey{80, 7}, opRequest, 0, nil))
		c, err := l.Accept()
		must(t, err)
		v.driverUp(first)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after the guest's reset: %v", err)
		}
		feed(t, v, guestPacket(connKey{80, 8}, opRequest, 0, nil))
		v.driverUp(1 - first)
		if len(v.conns) != 1 {
			t.Errorf("%d connections of the new guest, want 1", len(v.conns))
		}
		must(t, v.Close())
	}
}

// TestHostileBounds floods the device from a guest that takes no packets.
func TestHostileBounds(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	_, err := v.Listen(80)
	must(t, err)
	for i := range uint32(3 * maxConns) {
		feed(t, v, guestPacket(connKey{80, i}, opRequest, 0, nil))
		feed(t, v, guestPacket(connKey{81, i}, opData, 0, []byte("x")))
	}
	if len(v.conns) > maxBacklog || len(v.resets) > maxResets {
		t.Errorf("holds %d connections and %d resets", len(v.conns), len(v.resets))
	}
}

// FuzzVsock feeds packets of a hostile guest, and lets the host's side use
// whatever connections come of them.
func FuzzVsock(f *testing.F) {
	var seed []byte
	for _, op := range []uint16{opRequest, opData, opCreditRequest, opShutdown, opReset} {
		seed = append(seed, byte(op), 1, 3, 5)
	}
	f.Add(seed, []byte("data"))
	f.Fuzz(func(t *testing.T, script, data []byte) {
		if len(data) >= vsockHeaderSize {
			parseVsock([][]byte{data[:20], data[20:]})
		}
		v := NewVsock(3)
		defer v.Close()
		l, err := v.Listen(80)
		must(t, err)
		for ; len(script) >= 4; script = script[4:] {
			key := connKey{host: 80 + uint32(script[1]>>6), guest: uint32(script[1] & 15)}
			h, body, ok := parseVsock(guestPacket(key, uint16(script[0]), uint32(script[2]), bytes.Repeat(data, int(script[3]))))
			if !ok {
				t.Fatal("malformed")
			}
			h.alloc, h.fwd = uint32(script[3])<<(script[2]&24), uint32(script[1])<<(script[2]&24)
			h.typ = uint16(script[2]&1) + 1 - uint16(script[2]&1)*uint16(script[0]&1)
			v.packet(h, body)
			if ls := l.(*vsockListener); len(ls.backlog) > 0 {
				c, err := l.Accept()
				must(t, err)
				must(t, c.SetDeadline(time.Unix(1, 0)))
				_, _ = c.Write(data)
				must(t, c.SetDeadline(time.Time{}))
				if script[3]&1 == 1 {
					_ = c.Close()
				}
			}
			h, body2 := next(t, v, vsockHeaderSize+1+int(script[3]))
			if len(body2) != int(h.len) {
				t.Errorf("packet of %d bytes says %d", len(body2), h.len)
			}
		}
		if len(v.conns) > maxConns || len(v.resets) > maxResets {
			t.Errorf("%d connections, %d resets", len(v.conns), len(v.resets))
		}
	})
}

// BenchmarkSend is the device's cost per packet to the guest, of the size that
// Linux offers.
func BenchmarkSend(b *testing.B) {
	v := NewVsock(3)
	defer v.Close()
	l, err := v.Listen(80)
	must(b, err)
	feed(b, v, guestPacket(connKey{80, 7}, opRequest, 0, nil))
	c, err := l.Accept()
	must(b, err)
	go func() { _, _ = io.Copy(c, neverEnding{}) }()
	buf := [][]byte{make([]byte, 4<<10)}
	b.SetBytes(4<<10 - vsockHeaderSize)
	sent := 0
	for i := 0; i < b.N; {
		n := v.fill(buf)
		if n == 0 {
			runtime.Gosched()
			continue
		}
		sent += max(0, n-vsockHeaderSize)
		if i++; i%8 == 0 {
			p := guestPacket(connKey{80, 7}, opCreditUpdate, 0, nil)
			h, _, _ := parseVsock(p)
			h.alloc, h.fwd = 256<<10, uint32(sent)
			v.packet(h, nil)
		}
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }
