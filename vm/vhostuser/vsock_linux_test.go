package vhostuser

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// vsockGuest is the guest's driver of a Vsock device.
type vsockGuest struct {
	*frontend
	v     *Vsock
	taken int // packets from the device
}

// newVsockGuest starts a device with both rings.
func newVsockGuest(t testing.TB) *vsockGuest {
	v := NewVsock(3)
	g := &vsockGuest{frontend: serve(t, v, featureEventIdx), v: v}
	g.start(0)
	g.start(0)
	return g
}

// transmit sends a packet, its header in one descriptor and its data in
// another, and waits for the device to give them back.
func (g *vsockGuest) transmit(h vsockHeader, data []byte) {
	g.t.Helper()
	slot := int(g.avail[1]) % (ringSize / 2) * 2
	_, b := g.buffer(transmitQueue, slot)
	h.put([][]byte{b})
	_, b = g.buffer(transmitQueue, slot+1)
	n := copy(b, data)
	g.describe(transmitQueue, slot, vsockHeaderSize, descNext, slot+1)
	g.describe(transmitQueue, slot+1, n, 0, 0)
	g.publish(transmitQueue, slot)
	// It is back long before the device says so.
	u := g.mem[transmitQueue*ringStep+0x2000:]
	for end := time.Now().Add(10 * time.Second); load16(u, 2) == g.seen[transmitQueue]; runtime.Gosched() {
		if time.Now().After(end) {
			g.t.Fatal("the device keeps a packet")
		}
	}
	if got, n := g.used(transmitQueue); got != slot || n != 0 {
		g.t.Fatalf("sent %d; given back %d, with %d bytes", slot, got, n)
	}
}

// send transmits a packet of a connection.
func (g *vsockGuest) send(key connKey, op uint16, data []byte) {
	g.t.Helper()
	g.transmit(vsockHeader{
		srcCID: 3, srcPort: key.guest, dstCID: 2, dstPort: key.host,
		len: uint32(len(data)), typ: typeStream, op: op, alloc: 1 << 20,
	}, data)
}

// take offers a buffer of n bytes and waits for a packet in it.
func (g *vsockGuest) take(n int) (vsockHeader, []byte) {
	g.t.Helper()
	slot := g.taken % ringSize
	g.taken++
	g.offer(receiveQueue, slot, n, descWrite)
	return g.takeUsed()
}

// takeUsed waits for a packet in a buffer that was offered.
func (g *vsockGuest) takeUsed() (vsockHeader, []byte) {
	g.t.Helper()
	slot, n := g.used(receiveQueue)
	_, b := g.buffer(receiveQueue, slot)
	h, data, ok := parseVsock([][]byte{b[:n]})
	if !ok || n != vsockHeaderSize+int(h.len) || h.srcCID != 2 || h.dstCID != 3 {
		g.t.Fatalf("the device sends %x", b[:n])
	}
	return h, bytes.Join(data, nil)
}

// open opens a connection from the guest and accepts it on the host.
func (g *vsockGuest) open(l net.Listener, key connKey) net.Conn {
	g.t.Helper()
	g.send(key, opRequest, nil)
	c, err := l.Accept()
	must(g.t, err)
	g.t.Cleanup(func() { c.Close() })
	if h, _ := g.take(100); h.op != opResponse || h.dstPort != key.guest {
		g.t.Fatalf("packet %d for port %d, want a response for %d", h.op, h.dstPort, key.guest)
	}
	return c
}

// TestVsockOffer is what QEMU insists on: without these it ends with messages
// about something else.
func TestVsockOffer(t *testing.T) {
	f := serve(t, NewVsock(7), featureVersion1)
	if got := le.Uint64(f.ask(reqGetFeatures, nil)); got&featureVersion1 == 0 || got&featureProtocol == 0 {
		t.Errorf("features %#x", got)
	}
	got := le.Uint64(f.ask(reqGetProtocolFeatures, nil))
	if got&protocolConfig == 0 || got&protocolReplyAck == 0 {
		t.Errorf("protocol features %#x", got)
	}
	if got := le.Uint64(f.ask(reqGetQueueNum, nil)); got != 2 {
		t.Errorf("%d queues, want 2: the event queue is QEMU's", got)
	}
	config := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), 8), 0)
	if got := f.ask(reqGetConfig, append(config, make([]byte, 8)...)); le.Uint64(got[12:]) != 7 {
		t.Errorf("configuration %x, want the guest's context ID", got)
	}
}

// TestTransmitNeverWaits: a guest that takes no packet gets all its own ones
// back, and what they have caused once it does.
func TestTransmitNeverWaits(t *testing.T) {
	g := newVsockGuest(t)
	const n = 1000
	for i := range uint32(n) {
		g.send(connKey{80, i}, opRequest, nil) // nobody listens
	}
	for i := range uint32(n) {
		if h, _ := g.take(vsockHeaderSize + 1); h.op != opReset || h.dstPort != i {
			t.Fatalf("packet %d for port %d, want a reset for %d", h.op, h.dstPort, i)
		}
	}
}

// TestPacketSizes: packets are as large as the guest's buffers, whatever these
// are, and arrive in order through both regions of its memory.
func TestPacketSizes(t *testing.T) {
	g := newVsockGuest(t)
	l, err := g.v.Listen(80)
	must(t, err)
	c := g.open(l, connKey{80, 7})
	want := make([]byte, 200<<10)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	_, err = c.Write(want) // into the buffer, so that all packets are full
	must(t, err)
	var got []byte
	for i := 0; len(got) < len(want); i++ {
		size := []int{vsockHeaderSize + 1, 100, 1000, bufSize}[i%4]
		var data []byte
		if i%5 == 4 { // header and data in buffers of their own, and a third
			slot := g.taken % ringSize
			g.taken++
			next := func(k int) int { return (slot + 20*k) % ringSize }
			g.describe(receiveQueue, slot, vsockHeaderSize-4, descWrite|descNext, next(1))
			g.describe(receiveQueue, next(1), 4, descWrite|descNext, next(2))
			g.describe(receiveQueue, next(2), size, descWrite, 0)
			g.publish(receiveQueue, slot)
			slot, n := g.used(receiveQueue)
			_, a := g.buffer(receiveQueue, slot)
			_, b := g.buffer(receiveQueue, next(1))
			_, d := g.buffer(receiveQueue, next(2))
			size += vsockHeaderSize
			h, parts, ok := parseVsock([][]byte{a[:vsockHeaderSize-4], b[:4], d[:n-vsockHeaderSize]})
			if !ok || h.op != opData {
				t.Fatalf("packet %d", h.op)
			}
			data = bytes.Join(parts, nil)
		} else {
			var h vsockHeader
			if h, data = g.take(size); h.op != opData {
				t.Fatalf("packet %d", h.op)
			}
		}
		got = append(got, data...)
		if len(data) != size-vsockHeaderSize && len(got) < len(want) {
			t.Errorf("a packet with %d bytes of data in a buffer of %d", len(data), size)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the guest got something else")
	}
}

// TestForeignPackets: what is malformed or not for us is given back, and
// nothing else.
func TestForeignPackets(t *testing.T) {
	g := newVsockGuest(t)
	ok := vsockHeader{srcCID: 3, srcPort: 9, dstCID: 2, dstPort: 80, typ: typeStream, op: opRequest}
	for name, change := range map[string]func(*vsockHeader){
		"source":      func(h *vsockHeader) { h.srcCID = 4 },
		"destination": func(h *vsockHeader) { h.dstCID = 1 },
		"length":      func(h *vsockHeader) { h.len = 1 },
		"long length": func(h *vsockHeader) { h.len = 1<<32 - 1 },
	} {
		h := ok
		change(&h)
		g.transmit(h, nil)
		g.send(connKey{81, 1}, opData, nil)
		if h, _ := g.take(100); h.op != opReset || h.srcPort != 81 {
			t.Errorf("%s: answered by packet %d from port %d", name, h.op, h.srcPort)
		}
	}
	g.describe(transmitQueue, 0, vsockHeaderSize-1, 0, 0) // the header is cut off
	g.publish(transmitQueue, 0)
	g.used(transmitQueue)
}

// TestSmallReceiveBuffer: a buffer without room for data breaks the rules, and
// would stall a connection for good.
func TestSmallReceiveBuffer(t *testing.T) {
	g := newVsockGuest(t)
	g.offer(receiveQueue, 0, vsockHeaderSize, descWrite)
	g.send(connKey{80, 1}, opRequest, nil)
	if err := g.failure(); err == nil || !bytes.Contains([]byte(err.Error()), []byte("buffer of 44 bytes")) {
		t.Errorf("serve: %v", err)
	}
	if _, err := g.v.Dial(t.Context(), 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial on a dead device: %v", err)
	}
}

// TestPauseAndReset stops both rings under a hundred connections: after a pause
// they go on where they were, after a reset all have failed, and nothing of
// them is left.
func TestPauseAndReset(t *testing.T) {
	g := newVsockGuest(t)
	l, err := g.v.Listen(80)
	must(t, err)
	before := runtime.NumGoroutine()
	const n = 100
	var conns []net.Conn
	failed := make(chan error, n)
	for i := range uint32(n) {
		conns = append(conns, g.open(l, connKey{80, i}))
	}

	bases := [2]uint16{g.stopRing(receiveQueue), g.stopRing(transmitQueue)}
	_, err = conns[5].Write([]byte("while paused"))
	must(t, err)
	for i, base := range bases {
		if base != g.avail[i] {
			t.Errorf("ring %d stopped at %d of %d", i, base, g.avail[i])
		}
		g.startRing(i, base)
	}
	if h, data := g.take(100); h.dstPort != 5 || string(data) != "while paused" {
		t.Errorf("packet %d for port %d: %q", h.op, h.dstPort, data)
	}
	g.send(connKey{80, 99}, opData, []byte("on"))
	got := make([]byte, 10)
	if n, err := conns[99].Read(got); string(got[:n]) != "on" {
		t.Errorf("read %q, %v", got[:n], err)
	}

	for _, c := range conns {
		go func() {
			_, err := c.Read(make([]byte, 1))
			failed <- err
		}()
	}
	g.stopRing(receiveQueue)
	g.stopRing(transmitQueue)
	for i := range 2 {
		g.wipe(i)
		g.startRing(i, 0)
	}
	g.taken = 0
	for range n {
		select {
		case err := <-failed:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read after the guest's reset: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a connection outlives the guest's reset")
		}
	}
	for _, c := range conns {
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write after the guest's reset: %v", err)
		}
		c.Close()
	}
	g.v.mu.Lock()
	if left := len(g.v.conns) + len(g.v.ready) + len(g.v.resets); left != 0 {
		t.Errorf("%d connections, %d ready, %d resets are left", len(g.v.conns), len(g.v.ready), len(g.v.resets))
	}
	g.v.mu.Unlock()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, before: %d", runtime.NumGoroutine(), before)
		}
	}
	c := g.open(l, connKey{80, 3}) // as in the earlier life
	g.send(connKey{80, 3}, opData, []byte("new"))
	if _, err := io.ReadFull(c, got[:3]); err != nil || string(got[:3]) != "new" {
		t.Errorf("read %q, %v", got[:3], err)
	}
}

// BenchmarkConnections opens connections, one after the other, each with an echo:
// what the device alone takes, with a guest that costs nothing.
func BenchmarkConnections(b *testing.B) {
	g := newVsockGuest(b)
	l, err := g.v.Listen(80)
	must(b, err)
	key := connKey{host: 80, guest: 1000}
	one := make([]byte, 1)
	for b.Loop() {
		key.guest++
		g.send(key, opRequest, nil)
		c, err := l.Accept()
		must(b, err)
		g.await(opResponse)
		g.send(key, opData, one)
		_, err = c.Read(one)
		must(b, err)
		_, err = c.Write(one)
		must(b, err)
		g.await(opData)
		g.transmit(vsockHeader{srcCID: 3, srcPort: key.guest, dstCID: 2, dstPort: 80, typ: typeStream, op: opShutdown, flags: shutBoth}, nil)
		g.await(opReset)
		must(b, c.Close())
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connections/s")
}

// await takes packets up to one of a kind.
func (g *vsockGuest) await(op uint16) {
	g.t.Helper()
	for {
		if h, _ := g.take(100); h.op == op {
			return
		}
	}
}
