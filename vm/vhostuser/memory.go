package vhostuser

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxRegions is the most that SET_MEM_TABLE carries.
const maxRegions = 8

// memory is the guest's memory as one SET_MEM_TABLE described it. It is
// unmapped when the last holder lets go: the transport, each running Queue and
// each Chain are holders.
type memory struct {
	regions []region
	refs    atomic.Int64
}

// region is a contiguous piece of guest memory.
type region struct {
	guest  uint64 // guest-physical address
	user   uint64 // address in the front end's process; ring addresses use it
	data   []byte // exactly the region
	mapped []byte // what to unmap; nil for memory that is not mapped
}

// mapRegion maps the part of fd that reg describes. It does not keep fd.
//
// The file is mapped from its beginning, since the offset need not be a
// multiple of its page size (huge pages). A file that shrinks afterwards would
// raise SIGBUS; QEMU seals its memfd against that.
func mapRegion(fd int, guest, user, size, offset uint64) (region, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return region{}, fmt.Errorf("stat guest memory: %w", err)
	}
	end := offset + size
	if size == 0 || end < size || end > uint64(st.Size) || guest+size < guest || user+size < user {
		return region{}, fmt.Errorf("guest memory of %#x bytes at %#x (offset %#x) does not fit its file of %#x bytes", size, guest, offset, st.Size)
	}
	all, err := unix.Mmap(fd, 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return region{}, fmt.Errorf("map guest memory: %w", err)
	}
	return region{guest: guest, user: user, data: all[offset:end:end], mapped: all}, nil
}

func newMemory(regions []region) *memory {
	m := &memory{regions: regions}
	m.refs.Store(1)
	return m
}

func (m *memory) acquire() *memory {
	m.refs.Add(1)
	return m
}

func (m *memory) release() {
	if m.refs.Add(-1) == 0 {
		unmap(m.regions)
	}
}

func unmap(regions []region) {
	for _, r := range regions {
		if r.mapped != nil {
			// Fails only for arguments that did not come from Mmap.
			_ = unix.Munmap(r.mapped)
		}
	}
}

// appendGuest appends the n bytes at a guest-physical address to dst, in as
// many pieces as there are regions under them.
func (m *memory) appendGuest(dst [][]byte, addr uint64, n uint32) ([][]byte, error) {
	left := uint64(n)
	for left > 0 {
		b := m.at(addr)
		if b == nil {
			return nil, fmt.Errorf("guest address %#x: %w", addr, syscall.EFAULT)
		}
		k := min(left, uint64(len(b)))
		dst = append(dst, b[:k:k])
		addr += k
		left -= k
	}
	return dst, nil
}

// at returns what follows a guest-physical address in its region.
func (m *memory) at(addr uint64) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guest; addr >= r.guest && off < uint64(len(r.data)) {
			return r.data[off:]
		}
	}
	return nil
}

// userRange translates an address of the front end's process; the n bytes must
// lie in one region and begin at a multiple of align.
func (m *memory) userRange(addr, n, align uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		off := addr - r.user
		if addr < r.user || off >= uint64(len(r.data)) {
			continue
		}
		if addr%align != 0 || uint64(len(r.data))-off < n {
			break
		}
		return r.data[off : off+n : off+n], nil
	}
	return nil, fmt.Errorf("ring of %d bytes at %#x: %w", n, addr, syscall.EFAULT)
}
