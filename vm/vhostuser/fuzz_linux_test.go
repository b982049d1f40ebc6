package vhostuser

import (
	"bytes"
	"log/slog"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

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

// FuzzServe sends anything a front end could: {request u8, files u8, length
// u8, payload} again and again. Whatever it was, nothing that came with it is
// open or mapped once Serve has returned.
func FuzzServe(f *testing.F) {
	msg := func(r request, files byte, payload ...byte) []byte {
		return append([]byte{byte(r), files, byte(len(payload))}, payload...)
	}
	table := make([]byte, 40)
	table[0], table[17] = 1, 0x80 // one region of 32 KiB
	addr := make([]byte, 40)
	addr[17], addr[25] = 0x20, 0x10
	f.Add(bytes.Join([][]byte{
		msg(reqGetFeatures, 0),
		msg(reqSetFeatures, 0, u64(featureVersion1)...),
		msg(reqSetProtocolFeatures, 0, u64(protocolConfig|protocolReplyAck)...),
		msg(reqGetConfig, 0, append(le.AppendUint32(u64(0), 8), make([]byte, 8)...)...),
		msg(reqSetMemTable, 1, table...),
		msg(reqSetVringNum, 0, state(1, 16)...),
		msg(reqSetVringBase, 0, state(1, 0)...),
		msg(reqSetVringAddr, 0, append([]byte{1}, addr[1:]...)...),
		msg(reqSetVringCall, 4, u64(1)...),
		msg(reqSetVringKick, 4, u64(1)...),
		msg(reqSetVringEnable, 0, state(1, 1)...),
		msg(reqGetVringBase, 0, state(1, 0)...),
		msg(reqResetOwner, 0),
	}, nil))
	memfd, err := unix.MemfdCreate("fuzzed", unix.MFD_CLOEXEC)
	must(f, err)
	must(f, unix.Ftruncate(memfd, 64<<10))
	eventfd, err := unix.Eventfd(1, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	must(f, err)
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, script []byte) {
		open := descriptors(t)
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		ours, theirs := unixConn(t, fds[0]), unixConn(t, fds[1])
		ended := make(chan error, 1)
		go func() { ended <- Serve(theirs, NewVsock(3), log) }()
		for n := 0; len(script) >= 3 && n < 200; n++ {
			size := min(int(script[2]), len(script)-3)
			b := le.AppendUint32(nil, uint32(script[0]))
			b = le.AppendUint32(b, flagVersion|flagNeedReply)
			b = append(le.AppendUint32(b, uint32(size)), script[3:3+size]...)
			var files []int
			for range script[1] & 3 {
				files = append(files, memfd)
			}
			if script[1]&4 != 0 {
				files = append(files, eventfd)
			}
			var oob []byte
			if len(files) > 0 {
				oob = unix.UnixRights(files...)
			}
			if _, _, err := ours.WriteMsgUnix(b, oob, nil); err != nil {
				break // it has given up
			}
			script = script[3+size:]
		}
		must(t, ours.CloseWrite())
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("Serve outlives its front end")
		}
		ours.Close()
		if now := descriptors(t); now > open {
			t.Errorf("%d descriptors are open, %d were", now, open)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		must(t, err)
		if n := bytes.Count(maps, []byte("/memfd:fuzzed")); n != 0 {
			t.Errorf("the guest's memory is mapped %d times still", n)
		}
	})
}

// descriptors is how many this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(dir)
}

// FuzzDevice runs the vsock device on two rings in memory that a hostile guest
// fills, and changes meanwhile: descriptors, indices, packets. script is
// {where u16, what u8, do u8} again and again. At the end nobody holds the memory,
// and there is no connection.
func FuzzDevice(f *testing.F) {
	const size, rings = 16, 0x800 // of each ring, with its descriptors
	packet := make([]byte, vsockHeaderSize)
	for _, op := range []uint16{opRequest, opData, opCreditRequest, opShutdown} {
		h := vsockHeader{srcCID: 3, dstCID: 2, srcPort: 7, dstPort: 80, len: 4, typ: typeStream, op: op, alloc: 1 << 16}
		h.put([][]byte{packet})
		mem := make([]byte, 2*rings+64)
		for ring := range 2 {
			r := mem[ring*rings:]
			for i := range 4 {
				le.PutUint64(r[16*i:], 2*rings)
				le.PutUint32(r[16*i+8:], vsockHeaderSize+4)
				le.PutUint16(r[16*i+12:], uint16([]int{descWrite, 0}[ring]))
				le.PutUint16(r[0x404+2*i:], uint16(i))
			}
			le.PutUint16(r[0x402:], 4)
		}
		copy(mem[2*rings:], packet)
		f.Add(mem, []byte("\x00\x10\x03\x01\x00\x10\x03\x02\x00\x10\x03\x04\x00\x10\x03\x03"))
	}
	f.Fuzz(func(t *testing.T, mem, script []byte) {
		words := make([]uint64, 1024)
		low := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
		copy(low, mem)
		m := newMemory([]region{{data: low[:6<<10]}, {guest: 1 << 32, user: 1 << 40, data: low[6<<10:]}})
		v := NewVsock(3)
		defer v.Close()
		l, err := v.Listen(80)
		must(t, err)
		var queues [2]*Queue
		for i := range queues {
			at := uint64(i * rings)
			r, err := mapRing(m, size, ringAddr{desc: at, avail: at + 0x400, used: at + 0x500})
			must(t, err)
			q := &Queue{index: i, ring: r, mem: m.acquire(), call: -1, eventIdx: len(script)&1 == 1}
			q.idle.L = &q.mu
			queues[i] = q
		}
		broken := false // the device ends with the first error
		for ; len(script) >= 4 && !broken; script = script[4:] {
			low[int(le.Uint16(script))%len(low)] = script[2]
			if script[3]&1 != 0 {
				c, err := queues[transmitQueue].tryPop()
				broken = err != nil
				if c != nil {
					v.take(c)
					queues[transmitQueue].Push(c, 0)
				}
			}
			if script[3]&2 != 0 {
				if ls := l.(*vsockListener); len(ls.backlog) > 0 {
					c, err := l.Accept()
					must(t, err)
					_, _ = c.Write(script) // it may be reset already
				}
			}
			if script[3]&4 != 0 && !broken && v.pending() {
				c, err := queues[receiveQueue].tryPop()
				broken = err != nil
				if c == nil {
					continue
				}
				room := c.WritableLen()
				n, err := v.give(c)
				broken = err != nil
				if n > room {
					t.Fatalf("%d bytes in %d", n, room)
				}
				if n > 0 {
					queues[receiveQueue].Push(c, n)
				} else {
					queues[receiveQueue].Unpop(c)
				}
			}
		}
		for _, q := range queues {
			if q.inflight != 0 {
				t.Errorf("%d chains are out", q.inflight)
			}
			q.detach(0)
		}
		if n := m.refs.Load(); n != 1 {
			t.Errorf("%d hold the memory", n-1)
		}
		must(t, v.Close())
		if len(v.conns) != 0 || len(v.listeners) != 0 {
			t.Errorf("%d connections and %d listeners are left", len(v.conns), len(v.listeners))
		}
	})
}
