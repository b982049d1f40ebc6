package vhostuser

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

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

// describe fills the slot's descriptor.
func (f *frontend) describe(ring, slot, n int, flags uint16, next int) {
	guest, _ := f.buffer(ring, slot)
	d := f.mem[ring*ringStep+slot*descSize:]
	le.PutUint64(d, guest)
	le.PutUint32(d[8:], uint32(n))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], uint16(next))
}

// offer makes one descriptor available, and kicks.
func (f *frontend) offer(ring, slot, n int, flags uint16) {
	f.describe(ring, slot, n, flags, 0)
	f.publish(ring, slot)
}

// publish makes a chain available, and kicks.
func (f *frontend) publish(ring, slot int) {
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

// wipe makes a ring's memory what a driver that starts anew makes it.
func (f *frontend) wipe(ring int) {
	clear(f.mem[ring*ringStep:][:ringStep])
	f.avail[ring], f.seen[ring] = 0, 0
}

// failure waits until Serve has given up.
func (f *frontend) failure() error {
	f.t.Helper()
	select {
	case err := <-f.ended:
		f.ended <- nil
		return err
	case <-time.After(10 * time.Second):
		f.t.Fatal("Serve goes on")
		return nil
	}
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
