package vhostuser

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The guest's memory in these tests: two regions in one file, as QEMU has them
// around the PCI hole. Rings lie in the first one.
const (
	lowSize   = 1 << 20
	highSize  = 1 << 20
	highGuest = 4 << 30
	userBase  = 0x7000_0000_0000
	ringSize  = 64
	ringStep  = 0x4000 // between rings; descriptors, 0x1000 available, 0x2000 used
	bufBase   = 0x40000
	bufSize   = 4096
)

var le = binary.LittleEndian

// frontend is QEMU and the guest's driver in one.
type frontend struct {
	t     testing.TB
	conn  *net.UnixConn
	mem   []byte // our own mapping of guest memory
	memfd int
	kick  []int
	call  []*os.File
	avail []uint16
	seen  []uint16 // of the used ring
	ended chan error
}

// serve starts Serve for dev and shakes hands, without the rings.
func serve(t testing.TB, dev Device, features uint64) *frontend {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	f := &frontend{t: t, ended: make(chan error, 1)}
	ours, theirs := unixConn(t, fds[0]), unixConn(t, fds[1])
	f.conn = ours
	go func() { f.ended <- Serve(theirs, dev, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	t.Cleanup(f.close)

	f.memfd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	must(t, err)
	must(t, unix.Ftruncate(f.memfd, lowSize+highSize))
	f.mem, err = unix.Mmap(f.memfd, 0, lowSize+highSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)

	want := features | featureVersion1 | featureProtocol
	if got := f.ask(reqGetFeatures, nil); le.Uint64(got)&want != want {
		t.Fatalf("features %#x are not all offered: %#x", want, le.Uint64(got))
	}
	protocol := le.Uint64(f.ask(reqGetProtocolFeatures, nil))
	f.send(reqSetProtocolFeatures, 0, u64(protocol))
	f.set(reqSetOwner, nil)
	f.set(reqSetFeatures, u64(want))
	f.setMemory()
	return f
}

func (f *frontend) setMemory() {
	f.t.Helper()
	b := u64(2)
	for _, v := range []uint64{0, lowSize, userBase, 0, highGuest, highSize, userBase + lowSize, lowSize} {
		b = le.AppendUint64(b, v)
	}
	f.set(reqSetMemTable, b, f.memfd, f.memfd)
}

// start runs the next ring.
func (f *frontend) start(base uint16) {
	f.t.Helper()
	i := len(f.kick)
	fds := make([]int, 2)
	for k := range fds {
		var err error
		fds[k], err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		must(f.t, err)
	}
	f.kick = append(f.kick, fds[0])
	f.call = append(f.call, os.NewFile(uintptr(fds[1]), "call"))
	f.avail, f.seen = append(f.avail, base), append(f.seen, base)
	f.startRing(i, base)
}

func (f *frontend) startRing(i int, base uint16) {
	f.t.Helper()
	at := uint64(userBase + i*ringStep)
	f.set(reqSetVringNum, state(i, ringSize))
	f.set(reqSetVringBase, state(i, uint32(base)))
	addr := le.AppendUint32(nil, uint32(i))
	addr = le.AppendUint32(addr, 0)
	for _, v := range []uint64{at, at + 0x2000, at + 0x1000, 0} {
		addr = le.AppendUint64(addr, v)
	}
	f.set(reqSetVringAddr, addr)
	f.set(reqSetVringKick, u64(uint64(i)), f.kick[i])
	f.set(reqSetVringCall, u64(uint64(i)), int(f.call[i].Fd()))
	must(f.t, unix.SetNonblock(int(f.call[i].Fd()), true))
	f.set(reqSetVringEnable, state(i, 1))
}

// stopRing returns where the back end was.
func (f *frontend) stopRing(i int) uint16 {
	f.t.Helper()
	got := f.ask(reqGetVringBase, state(i, 0))
	return uint16(le.Uint32(got[4:]))
}

// buffer is the slot's memory; the odd ones are in the second region.
func (f *frontend) buffer(ring, slot int) (guest uint64, b []byte) {
	off := bufBase + (ring*ringSize+slot)*bufSize
	if slot%2 == 1 {
		return uint64(highGuest + off), f.mem[lowSize+off:][:bufSize]
	}
	return uint64(off), f.mem[off:][:bufSize]
}

// offer makes one descriptor available, and kicks.
func (f *frontend) offer(ring, slot, n int, flags uint16) {
	guest, _ := f.buffer(ring, slot)
	d := f.mem[ring*ringStep+slot*descSize:]
	le.PutUint64(d, guest)
	le.PutUint32(d[8:], uint32(n))
	le.PutUint16(d[12:], flags)
	a := f.mem[ring*ringStep+0x1000:]
	le.PutUint16(a[4+2*(int(f.avail[ring])%ringSize):], uint16(slot))
	f.avail[ring]++
	store16(a, 2, f.avail[ring])
	// The used ring asks for one interrupt per buffer.
	store16(a, 4+2*ringSize, f.seen[ring])
	_, err := unix.Write(f.kick[ring], u64(1))
	must(f.t, err)
}

// used waits for the next returned buffer.
func (f *frontend) used(ring int) (slot, n int) {
	f.t.Helper()
	u, a := f.mem[ring*ringStep+0x2000:], f.mem[ring*ringStep+0x1000:]
	must(f.t, f.call[ring].SetReadDeadline(time.Now().Add(10*time.Second)))
	for {
		store16(a, 4+2*ringSize, f.seen[ring])
		if load16(u, 2) != f.seen[ring] {
			break
		}
		var count [8]byte
		if _, err := f.call[ring].Read(count[:]); err != nil {
			f.t.Fatalf("no interrupt on ring %d: %v", ring, err)
		}
	}
	e := u[4+8*(int(f.seen[ring])%ringSize):]
	f.seen[ring]++
	return int(le.Uint32(e)), int(le.Uint32(e[4:]))
}

// close ends the conversation and checks that Serve returns.
func (f *frontend) close() {
	f.conn.Close()
	select {
	case err := <-f.ended:
		if err != nil {
			f.t.Errorf("serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		f.t.Fatal("Serve outlives its front end")
	}
	f.ended <- nil
	if f.mem != nil {
		must(f.t, unix.Munmap(f.mem))
		f.mem = nil
		closeFD(f.memfd)
		for i := range f.kick {
			closeFD(f.kick[i])
			f.call[i].Close()
		}
	}
}

func (f *frontend) send(r request, flags uint32, payload []byte, fds ...int) {
	f.t.Helper()
	b := le.AppendUint32(nil, uint32(r))
	b = le.AppendUint32(b, flagVersion|flags)
	b = le.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.conn.WriteMsgUnix(append(b, payload...), oob, nil)
	must(f.t, err)
}

func (f *frontend) ask(r request, payload []byte) []byte {
	f.t.Helper()
	f.send(r, 0, payload)
	return f.reply(r)
}

// set sends a request that is acknowledged.
func (f *frontend) set(r request, payload []byte, fds ...int) {
	f.t.Helper()
	f.send(r, flagNeedReply, payload, fds...)
	if got := f.reply(r); le.Uint64(got) != 0 {
		f.t.Fatalf("request %d: %d", r, le.Uint64(got))
	}
}

func (f *frontend) reply(r request) []byte {
	f.t.Helper()
	must(f.t, f.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	var h [headerSize]byte
	_, err := io.ReadFull(f.conn, h[:])
	must(f.t, err)
	if got := request(le.Uint32(h[:])); got != r || le.Uint32(h[4:]) != flagVersion|flagReply {
		f.t.Fatalf("answer to request %d: %x", r, h)
	}
	b := make([]byte, le.Uint32(h[8:]))
	_, err = io.ReadFull(f.conn, b)
	must(f.t, err)
	return b
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	c, err := net.FileConn(file)
	must(t, err)
	return c.(*net.UnixConn)
}

func u64(v uint64) []byte { return le.AppendUint64(nil, v) }

func state(i int, v uint32) []byte { return u64(uint64(i) | uint64(v)<<32) }

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
	select {
	case err := <-f.ended:
		if !errors.Is(err, errRing) {
			t.Errorf("serve: %v, want a malformed queue", err)
		}
		f.ended <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("a loop of descriptors is served")
	}
}

// FuzzChain walks descriptors in memory that a hostile guest has filled.
func FuzzChain(f *testing.F) {
	one := make([]byte, 64)
	le.PutUint64(one, 0x100)
	le.PutUint32(one[8:], 32)
	f.Add(one, uint16(0))
	le.PutUint16(one[12:], descIndirect)
	f.Add(one, uint16(0))
	le.PutUint16(one[12:], descNext|descWrite)
	f.Add(one, uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, head uint16) {
		words := make([]uint64, 512)
		low := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
		high := make([]byte, 4096)
		copy(low, data)
		copy(high, data)
		m := newMemory([]region{{guest: 0, user: 0, data: low}, {guest: 4096, user: 1 << 40, data: high}})
		r, err := mapRing(m, 16, ringAddr{desc: 0, avail: 0x400, used: 0x500})
		must(t, err)
		c, err := r.chain(m, head)
		if err != nil {
			return
		}
		if n := len(c.Readable) + len(c.Writable); n > 2*maxChainLen {
			t.Errorf("a chain of %d buffers", n)
		}
		for _, b := range append(c.Readable, c.Writable...) {
			if cap(b) != len(b) {
				t.Error("a buffer can grow")
			}
			p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
			inside := func(r []byte) bool {
				s := uintptr(unsafe.Pointer(unsafe.SliceData(r)))
				return p >= s && p+uintptr(len(b)) <= s+uintptr(len(r))
			}
			if !inside(low) && !inside(high) {
				t.Errorf("a buffer outside guest memory")
			}
		}
	})
}
