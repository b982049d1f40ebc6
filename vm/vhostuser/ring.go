package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Limits and layout of a split virtqueue (virtio 1.2, 2.7).
const (
	maxQueueSize = 1024 // as QEMU's VIRTQUEUE_MAX_SIZE
	maxChainLen  = 1024 // descriptors of one chain, indirect ones included
	descSize     = 16

	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1 // avail.flags
	usedNoNotify     = 1 // used.flags
)

// See there: it is declared only where word is right.
const _ = littleEndianHost

var errRing = errors.New("malformed virtqueue")

// ring is a split virtqueue in guest memory. It holds no state but where it is.
type ring struct {
	num   uint16
	desc  []byte // num × {addr u64, len u32, flags u16, next u16}
	avail []byte // flags u16, idx u16, num × u16, used_event u16
	used  []byte // flags u16, idx u16, num × {id u32, len u32}, avail_event u16
}

// ringAddr is where a ring lies, in addresses of the front end's process.
type ringAddr struct{ desc, used, avail uint64 }

func mapRing(m *memory, num uint16, a ringAddr) (ring, error) {
	r := ring{num: num}
	n := uint64(num)
	if num == 0 || num > maxQueueSize || num&(num-1) != 0 {
		return r, fmt.Errorf("%w: size %d", errRing, num)
	}
	var err error
	if r.desc, err = m.userRange(a.desc, n*descSize, 16); err != nil {
		return r, fmt.Errorf("descriptor %w", err)
	}
	if r.avail, err = m.userRange(a.avail, 6+2*n, 2); err != nil {
		return r, fmt.Errorf("available %w", err)
	}
	if r.used, err = m.userRange(a.used, 6+8*n, 4); err != nil {
		return r, fmt.Errorf("used %w", err)
	}
	return r, nil
}

func (r *ring) availFlags() uint16     { return load16(r.avail, 0) }
func (r *ring) availIdx() uint16       { return load16(r.avail, 2) }
func (r *ring) usedEvent() uint16      { return load16(r.avail, 4+2*int(r.num)) }
func (r *ring) usedIdx() uint16        { return load16(r.used, 2) }
func (r *ring) setAvailEvent(i uint16) { store16(r.used, 4+8*int(r.num), i) }
func (r *ring) setUsedFlags(f uint16)  { store16(r.used, 0, f) }

// availHead returns the chain at a position of the available ring.
func (r *ring) availHead(i uint16) uint16 {
	return binary.LittleEndian.Uint16(r.avail[4+2*int(i&(r.num-1)):])
}

// putUsed fills a position of the used ring; setUsedIdx publishes it.
func (r *ring) putUsed(i, head uint16, n uint32) {
	e := r.used[4+8*int(i&(r.num-1)):]
	binary.LittleEndian.PutUint32(e, uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
}

func (r *ring) setUsedIdx(i uint16) { store16(r.used, 2, i) }

// desc is a copy of one descriptor: read once, since the guest may change it.
type desc struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

func readDesc(b []byte) desc {
	return desc{
		addr:  binary.LittleEndian.Uint64(b),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}

// chain collects the buffers of the chain that begins at head. It does not
// trust a bit of what it reads.
func (r *ring) chain(m *memory, head uint16) (*Chain, error) {
	c := &Chain{head: head}
	if head >= r.num {
		return nil, fmt.Errorf("%w: head %d of %d", errRing, head, r.num)
	}
	table, seen := r.desc, 0
	indirect := false
	for i := head; ; {
		if int(i) >= len(table)/descSize {
			return nil, fmt.Errorf("%w: descriptor %d of %d", errRing, i, len(table)/descSize)
		}
		if seen++; seen > maxChainLen || !indirect && seen > int(r.num) {
			return nil, fmt.Errorf("%w: descriptor loop", errRing)
		}
		d := readDesc(table[int(i)*descSize:])
		if d.flags&descIndirect != 0 {
			if indirect || d.flags&descNext != 0 {
				return nil, fmt.Errorf("%w: nested indirect table", errRing)
			}
			var err error
			if table, err = m.indirect(d); err != nil {
				return nil, err
			}
			indirect, i = true, 0
			continue
		}
		if err := c.add(m, d); err != nil {
			return nil, err
		}
		if d.flags&descNext == 0 {
			return c, nil
		}
		i = d.next
	}
}

// indirect returns the table that d points to. One that straddles two regions
// of memory is copied.
func (m *memory) indirect(d desc) ([]byte, error) {
	if d.len == 0 || d.len%descSize != 0 || d.len > maxChainLen*descSize {
		return nil, fmt.Errorf("%w: indirect table of %d bytes", errRing, d.len)
	}
	parts, err := m.appendGuest(nil, d.addr, d.len)
	if err != nil {
		return nil, fmt.Errorf("%w: indirect table: %w", errRing, err)
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	var table []byte
	for _, p := range parts {
		table = append(table, p...)
	}
	return table, nil
}

// add appends the buffer of one descriptor.
func (c *Chain) add(m *memory, d desc) error {
	dst := &c.Readable
	if d.flags&descWrite != 0 {
		dst = &c.Writable
	} else if len(c.Writable) > 0 {
		return fmt.Errorf("%w: readable descriptor behind a writable one", errRing)
	}
	bufs, err := m.appendGuest(*dst, d.addr, d.len)
	if err != nil {
		return fmt.Errorf("%w: %w", errRing, err)
	}
	*dst = bufs
	return nil
}

// word returns the aligned 32-bit word around b[off], and by how many bits to
// shift it for the 16 bits there; off is even, and guest memory begins and
// ends at page boundaries, so that the word is always inside.
func word(b []byte, off int) (*uint32, uint) {
	p := unsafe.Pointer(&b[off])
	odd := uintptr(p) & 2
	return (*uint32)(unsafe.Add(p, -int(odd))), uint(odd) * 8
}

// load16 is an atomic load.
func load16(b []byte, off int) uint16 {
	p, shift := word(b, off)
	return uint16(atomic.LoadUint32(p) >> shift)
}

// store16 is an atomic store that leaves its neighbour, which may be the
// guest's, alone.
func store16(b []byte, off int, v uint16) {
	p, shift := word(b, off)
	for {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}
