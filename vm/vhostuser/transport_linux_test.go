package vhostuser

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mirror is a device that sends chains back, last first, four at a time, and
// from goroutines.
type mirror struct{ runs chan bool }

func (*mirror) Features() uint64 { return 0 }
func (*mirror) Queues() int      { return 1 }
func (*mirror) Config() []byte   { return []byte{1, 2, 3, 4, 5, 6, 7, 8} }

func (d *mirror) Serve(q *Queue) error {
	d.runs <- q.Fresh()
	var held []*Chain
	for {
		c, err := q.Pop()
		if err != nil {
			for _, c := range held {
				q.Push(c, 0)
			}
			return err
		}
		if held = append(held, c); len(held) < 4 {
			continue
		}
		for i := len(held) - 1; i >= 0; i-- {
			done := make(chan bool)
			go func() {
				q.Push(held[i], total(held[i].Writable))
				close(done)
			}()
			<-done
		}
		held = nil
	}
}

func TestTransport(t *testing.T) {
	for name, features := range map[string]uint64{"event index": featureEventIdx, "flags": 0} {
		t.Run(name, func(t *testing.T) {
			dev := &mirror{runs: make(chan bool, 4)}
			f := serve(t, dev, features)
			config := append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 2), 3), 0), 0, 0, 0)
			if got := f.ask(reqGetConfig, config); string(got[12:]) != "\x03\x04\x05" {
				t.Errorf("configuration: %x", got)
			}
			f.start(0)
			if !<-dev.runs {
				t.Error("the first run is not fresh")
			}
			for round := range 100 { // through the ring's end
				for slot := range 4 {
					f.offer(0, slot, 100+slot, descWrite)
				}
				for want := 3; want >= 0; want-- {
					if slot, n := f.used(0); slot != want || n != 100+want {
						t.Fatalf("round %d: slot %d with %d bytes, want %d", round, slot, n, want)
					}
				}
				if round == 50 {
					f.setMemory() // while the ring runs
				}
			}
			base := f.stopRing(0)
			if base != 400 {
				t.Errorf("stopped at %d, want 400", base)
			}
			f.startRing(0, base)
			if <-dev.runs {
				t.Error("a resumed run is fresh")
			}
			f.offer(0, 1, 10, descWrite)
			f.close()
		})
	}
}

// TestTransportRefuses shows that a guest that breaks the rules loses the
// device, and nothing else happens.
func TestTransportRefuses(t *testing.T) {
	dev := &mirror{runs: make(chan bool, 4)}
	f := serve(t, dev, featureEventIdx)
	f.start(0)
	f.offer(0, 0, 10, descNext) // whose next is itself
	if err := f.failure(); !errors.Is(err, errRing) {
		t.Errorf("serve: %v, want a malformed queue", err)
	}
}

// TestServeRefuses shows that whatever a front end gets wrong ends the
// conversation with an error, and leaves no descriptor.
func TestServeRefuses(t *testing.T) {
	none := state(0, 0)
	table := func(count int, fields ...uint64) []byte {
		b := u64(uint64(count))
		for _, v := range fields {
			b = le.AppendUint64(b, v)
		}
		return b
	}
	addr := func(desc, used, avail uint64) []byte { return table(0, desc, used, avail, 0) }
	begin := openFiles(t)
	for name, tt := range map[string]struct {
		send func(f *frontend) // the last message
		want string
	}{
		"version":                {func(f *frontend) { f.send(reqGetFeatures, 2, nil) }, "malformed header"},
		"long payload":           {func(f *frontend) { f.send(reqGetFeatures, 0, make([]byte, maxPayload+1)) }, "malformed header"},
		"unknown":                {func(f *frontend) { f.send(200, 0, nil) }, "unknown request"},
		"not offered":            {func(f *frontend) { f.send(reqSetFeatures, 0, u64(featureVersion1|1<<40)) }, "not offered"},
		"legacy driver":          {func(f *frontend) { f.send(reqSetFeatures, 0, u64(featureProtocol)) }, "before 1.0"},
		"short":                  {func(f *frontend) { f.send(reqSetFeatures, 0, []byte{1}) }, "want 8"},
		"short address":          {func(f *frontend) { f.send(reqSetVringAddr, 0, none) }, "8 bytes"},
		"short config":           {func(f *frontend) { f.send(reqGetConfig, 0, none) }, "8 bytes"},
		"no such ring":           {func(f *frontend) { f.send(reqSetVringNum, 0, state(1, 64)) }, "ring 1 of 1"},
		"kick of no ring":        {func(f *frontend) { f.send(reqSetVringKick, 0, u64(9), f.memfd) }, "ring 9 of 1"},
		"polling":                {func(f *frontend) { f.send(reqSetVringKick, 0, u64(noFD)) }, "polling"},
		"kick missing":           {func(f *frontend) { f.send(reqSetVringKick, 0, u64(0)) }, "want 1"},
		"kick of a file":         {func(f *frontend) { f.send(reqSetVringKick, 0, u64(0), f.memfd) }, "kick descriptor"},
		"two kicks":              {func(f *frontend) { f.send(reqSetVringKick, 0, u64(0), f.kick[0], f.kick[0]) }, "want 1"},
		"many files":             {func(f *frontend) { f.send(reqSetOwner, 0, nil, 0, 1, 2, 0, 1, 2, 0, 1, 2) }, "more than 8"},
		"many regions":           {func(f *frontend) { f.send(reqSetMemTable, 0, table(9, make([]uint64, 36)...)) }, "9 regions"},
		"regions cut off":        {func(f *frontend) { f.send(reqSetMemTable, 0, table(2, 0, 1, 2, 3), 0, 1) }, "2 regions in 40 bytes"},
		"region, no file":        {func(f *frontend) { f.send(reqSetMemTable, 0, table(1, 0, 4096, 0, 0)) }, "0 files"},
		"empty region":           {func(f *frontend) { f.send(reqSetMemTable, 0, table(1, 0, 0, 0, 0), f.memfd) }, "does not fit"},
		"large region":           {func(f *frontend) { f.send(reqSetMemTable, 0, table(1, 0, 1<<30, 0, 0), f.memfd) }, "does not fit"},
		"huge offset":            {func(f *frontend) { f.send(reqSetMemTable, 0, table(1, 0, 4096, 0, -4096&(1<<64-1)), f.memfd) }, "does not fit"},
		"region's end":           {func(f *frontend) { f.send(reqSetMemTable, 0, table(1, 1<<64-1, 4096, 0, 0), f.memfd) }, "does not fit"},
		"size of a running ring": {func(f *frontend) { f.send(reqSetVringNum, 0, state(0, 64)) }, "is running"},
		"address of a running ring": {func(f *frontend) {
			f.send(reqSetVringAddr, 0, addr(userBase, userBase+0x2000, userBase+0x1000))
		}, "is running"},
		"memory below a ring": {func(f *frontend) {
			f.send(reqSetMemTable, 0, table(1, 0, 4096, 0, 0), f.memfd)
		}, "bad address"},
		"size of 3": {func(f *frontend) {
			f.stopRing(0)
			f.set(reqSetVringNum, state(0, 3))
			f.send(reqSetVringKick, 0, u64(0), f.kick[0])
		}, "size 3"},
		"ring across the end": {func(f *frontend) {
			f.stopRing(0)
			f.set(reqSetVringAddr, addr(userBase+lowSize-16, userBase, userBase))
			f.send(reqSetVringKick, 0, u64(0), f.kick[0])
		}, "bad address"},
		"misaligned ring": {func(f *frontend) {
			f.stopRing(0)
			f.set(reqSetVringAddr, addr(userBase+8, userBase, userBase))
			f.send(reqSetVringKick, 0, u64(0), f.kick[0])
		}, "bad address"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := &mirror{runs: make(chan bool, 4)}
			f := serve(t, dev, 0)
			f.start(0)
			<-dev.runs
			tt.send(f)
			if err := f.failure(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("serve: %v, want %q", err, tt.want)
			}
		})
	}
	if end := openFiles(t); end != begin {
		t.Errorf("%d descriptors are open, before: %d", end, begin)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestConfigBounds: what lies outside of the configuration space is answered
// by nothing, which is how the protocol says no.
func TestConfigBounds(t *testing.T) {
	f := serve(t, &mirror{runs: make(chan bool, 1)}, 0)
	for _, tt := range [][2]uint32{{0, 9}, {9, 0}, {8, 1}, {1<<32 - 1, 2}} {
		ask := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, tt[0]), tt[1]), 0)
		if got := f.ask(reqGetConfig, ask); len(got) != 0 {
			t.Errorf("%d bytes at %d: %x", tt[1], tt[0], got)
		}
	}
}

// slow is a device that takes its time to leave a run.
type slow struct {
	mirror
	in, left chan bool
}

func (d *slow) Serve(q *Queue) error {
	d.in <- true
	<-q.Done()
	time.Sleep(50 * time.Millisecond) // what a real one does by chance
	d.left <- true
	return nil
}

// TestStopWaits: the front end hears that a ring has stopped when the device
// has left it, so that two runs never overlap.
func TestStopWaits(t *testing.T) {
	d := &slow{in: make(chan bool, 2), left: make(chan bool, 2)}
	f := serve(t, d, 0)
	f.start(0)
	for range 2 {
		<-d.in
		f.stopRing(0)
		select {
		case <-d.left:
		default:
			t.Fatal("the ring is stopped, and the device still works on it")
		}
		f.startRing(0, 0)
	}
	<-d.in
}

// TestCallChanges: a new descriptor for interrupts gets one at once, since what
// was returned before may have found none.
func TestCallChanges(t *testing.T) {
	dev := &mirror{runs: make(chan bool, 1)}
	f := serve(t, dev, featureEventIdx)
	f.start(0)
	<-dev.runs
	f.set(reqSetVringCall, u64(noFD))
	for slot := range 4 {
		f.offer(0, slot, 10, descWrite)
	}
	u := f.mem[0x2000:]
	for end := time.Now().Add(10 * time.Second); load16(u, 2) != 4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("without an interrupt's descriptor nothing is returned")
		}
	}
	f.set(reqSetVringCall, u64(0), int(f.call[0].Fd()))
	must(t, unix.SetNonblock(int(f.call[0].Fd()), true))
	must(t, f.call[0].SetReadDeadline(time.Now().Add(10*time.Second)))
	var count [8]byte
	if _, err := f.call[0].Read(count[:]); err != nil {
		t.Errorf("no interrupt through the new descriptor: %v", err)
	}
}

// TestBlockingKick: a front end's kick descriptor may be a blocking one; a wait
// for it must end all the same.
func TestBlockingKick(t *testing.T) {
	dev := &mirror{runs: make(chan bool, 2)}
	f := serve(t, dev, 0)
	f.start(0)
	<-dev.runs
	f.stopRing(0)
	must(t, unix.SetNonblock(f.kick[0], false))
	f.startRing(0, 0)
	<-dev.runs
	f.stopRing(0) // fails after 10 seconds
}

// TestUnpop: a chain that is given back is the next one, also of the next run.
func TestUnpop(t *testing.T) {
	heads := make(chan uint16)
	f := serve(t, unpopper{heads}, 0)
	f.start(0)
	f.offer(0, 5, 10, descWrite)
	f.offer(0, 6, 10, descWrite)
	for range 2 {
		if got := <-heads; got != 5 {
			t.Errorf("popped %d, want 5", got)
		}
	}
	if base := f.stopRing(0); base != 0 {
		t.Errorf("stopped at %d, want 0", base)
	}
	f.startRing(0, 0)
	if got := <-heads; got != 5 {
		t.Errorf("the next run popped %d, want 5", got)
	}
}

// unpopper pops and gives back.
type unpopper struct{ heads chan uint16 }

func (unpopper) Features() uint64 { return 0 }
func (unpopper) Queues() int      { return 1 }
func (unpopper) Config() []byte   { return nil }

func (d unpopper) Serve(q *Queue) error {
	for {
		c, err := q.Pop()
		if err != nil {
			return err
		}
		head := c.head
		q.Unpop(c)
		select {
		case d.heads <- head:
		case <-q.Done():
		}
	}
}

// TestHalfWords: a store of 16 bits leaves the other half of its word alone,
// which the guest may be writing.
func TestHalfWords(t *testing.T) {
	words := make([]uint64, 1)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8)
	var all sync.WaitGroup
	for half := range 2 {
		all.Go(func() {
			for i := range uint16(10000) {
				store16(b, 2*half, i)
				if got := load16(b, 2*half); got != i {
					t.Errorf("stored %d, loaded %d", i, got)
					return
				}
			}
		})
	}
	all.Wait()
}
