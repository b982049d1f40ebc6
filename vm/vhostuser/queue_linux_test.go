package vhostuser

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bareQueue is a Queue in memory of its own, whose interrupts can be counted; the
// guest has made all chains available, each 64 writable bytes.
func bareQueue(t *testing.T, num uint16, eventIdx bool) (q *Queue, interrupts func() uint64) {
	t.Helper()
	const avail, used, buffer = 0x4000, 0x5000, 0x8000
	words := make([]uint64, 0x1100)
	mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
	for i := range int(num) {
		le.PutUint64(mem[descSize*i:], buffer)
		le.PutUint32(mem[descSize*i+8:], 64)
		le.PutUint16(mem[descSize*i+12:], descWrite)
		le.PutUint16(mem[avail+4+2*i:], uint16(i))
	}
	store16(mem, avail+2, num)
	m := newMemory([]region{{data: mem}})
	r, err := mapRing(m, num, ringAddr{avail: avail, used: used})
	must(t, err)
	fd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		must(t, err)
		return fd
	}
	q = &Queue{eventIdx: eventIdx, ring: r, mem: m, call: fd(), kick: os.NewFile(uintptr(fd()), "kick"), done: make(chan struct{})}
	q.idle.L = &q.mu
	t.Cleanup(func() {
		closeFD(q.call)
		q.kick.Close()
	})
	return q, func() uint64 {
		var b [8]byte
		if n, _ := unix.Read(q.call, b[:]); n != 8 {
			return 0
		}
		return le.Uint64(b[:])
	}
}

// TestNotify: the guest is interrupted when one of the returned chains is the one
// that it has named, however many are returned at once.
func TestNotify(t *testing.T) {
	for _, tt := range []struct {
		from, n, event uint16
		want           uint64
	}{
		{0, 1, 0, 1}, {0, 1, 1, 0}, {0, 5, 0, 1}, {0, 5, 4, 1}, {0, 5, 5, 0}, {3, 2, 2, 0}, {3, 2, 3, 1},
		{1<<16 - 2, 4, 1<<16 - 1, 1}, {1<<16 - 2, 4, 1, 1}, {1<<16 - 2, 4, 2, 0}, {1<<16 - 2, 4, 1<<16 - 3, 0}, {7, 0, 6, 0},
	} {
		q, interrupts := bareQueue(t, 16, true)
		q.usedIdx, q.notified = tt.from, tt.from
		store16(q.ring.avail, 4+2*int(q.ring.num), tt.event)
		for range tt.n {
			c, err := q.tryPop()
			must(t, err)
			q.pushQuietly(c, 1)
		}
		q.notify()
		q.notify() // nothing is new
		if got := interrupts(); got != tt.want {
			t.Errorf("%d chains from %d on, of which the guest wants to hear at %d: %d interrupts, want %d", tt.n, tt.from, tt.event, got, tt.want)
		}
	}
}

// TestNotifyLater: one interrupt for a quarter of the ring, or after a while, or
// when the ring stops.
func TestNotifyLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, interrupts := bareQueue(t, 16, false)
		give := func(n int) {
			t.Helper()
			for range n {
				c, err := q.tryPop()
				must(t, err)
				q.pushQuietly(c, 1)
				q.notifyLater()
			}
		}
		expect := func(when string, want uint64) {
			t.Helper()
			synctest.Wait()
			if got := interrupts(); got != want {
				t.Errorf("%s: %d interrupts, want %d", when, got, want)
			}
		}
		give(3)
		expect("less than a quarter", 0)
		give(1)
		expect("a quarter", 1)
		time.Sleep(2 * notifyWithin)
		expect("nothing since", 0)
		for range 2 {
			give(1)
			expect("one", 0)
			time.Sleep(notifyWithin)
			expect("one, after a while", 1)
		}
		give(1)
		q.signalStop()
		expect("one, when the ring stops", 1)
		time.Sleep(2 * notifyWithin)
		expect("after the stop", 0)
	})
}

// TestFlushMost: who sends for others does not go on for ever; the ring's own
// goroutine is woken for the rest.
func TestFlushMost(t *testing.T) {
	v := NewVsock(3)
	defer v.Close()
	q, _ := bareQueue(t, 2*flushMost, true)
	v.rx = q
	const n = flushMost + 10
	for i := range uint32(n) {
		v.queueReset(reset{connKey{80, i}, typeStream})
	}
	v.flush()
	if q.usedIdx != flushMost {
		t.Errorf("%d packets at once, want %d", q.usedIdx, flushMost)
	}
	must(t, q.kick.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := q.kick.Read(make([]byte, 8)); err != nil {
		t.Fatalf("the ring's goroutine sleeps: %v", err)
	}
	v.flush()
	if q.usedIdx != n {
		t.Errorf("%d packets in the end, want %d", q.usedIdx, n)
	}
}

// TestSendInPlace: what a connection writes is in the guest's ring when Write
// returns, with no other goroutine at work.
func TestSendInPlace(t *testing.T) {
	v, _, c := accepted(t)
	q, interrupts := bareQueue(t, 16, true)
	v.rx = q
	_, err := c.Write([]byte("hello"))
	must(t, err)
	if q.usedIdx != 1 || interrupts() != 1 {
		t.Errorf("%d packets", q.usedIdx)
	}
	h, data, ok := parseVsock([][]byte{q.mem.at(0x8000)[:vsockHeaderSize+5]})
	if !ok || h.op != opData || string(data[0]) != "hello" {
		t.Errorf("packet %d %q", h.op, data)
	}
}
