package vhostuser

import (
	"bytes"
	"go/build"
	"slices"
	"testing"
	"unsafe"
)

// TestByteOrder: everything that the guest and QEMU see is little-endian, by the
// byte.
func TestByteOrder(t *testing.T) {
	words := make([]uint64, 64)
	mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
	m := newMemory([]region{{data: mem}})
	r, err := mapRing(m, 2, ringAddr{desc: 0, avail: 0x40, used: 0x80})
	must(t, err)

	copy(mem, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 2, 0, 14, 15})
	if got, want := readDesc(mem), (desc{addr: 0x0807060504030201, len: 0x0c0b0a09, flags: descWrite, next: 0x0f0e}); got != want {
		t.Errorf("descriptor %+v, want %+v", got, want)
	}
	copy(mem[0x40:], []byte{1, 0, 2, 3, 4, 5, 6, 7, 8, 9}) // flags, index, heads, used_event
	if r.availFlags() != 1 || r.availIdx() != 0x0302 || r.availHead(0) != 0x0504 || r.availHead(1) != 0x0706 || r.usedEvent() != 0x0908 {
		t.Errorf("available ring: %#x %#x %#x %#x %#x", r.availFlags(), r.availIdx(), r.availHead(0), r.availHead(1), r.usedEvent())
	}
	r.setUsedFlags(0x0201)
	r.setUsedIdx(0x0403)
	r.putUsed(0, 0x0605, 0x0c0b0a09)
	r.setAvailEvent(0x0e0d)
	if got, want := mem[0x80:0x80+22], []byte{1, 2, 3, 4, 5, 6, 0, 0, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 13, 14}; !bytes.Equal(got, want) {
		t.Errorf("used ring % x, want % x", got, want)
	}

	h := vsockHeader{
		srcCID: 0x0807060504030201, dstCID: 0x100f0e0d0c0b0a09, srcPort: 0x14131211, dstPort: 0x18171615, len: 0x1c1b1a19,
		typ: 0x1e1d, op: 0x201f, flags: 0x24232221, alloc: 0x28272625, fwd: 0x2c2b2a29,
	}
	got := make([]byte, vsockHeaderSize)
	h.put([][]byte{got})
	for i, b := range got {
		if int(b) != i+1 {
			t.Fatalf("packet header % x: not in order", got)
		}
	}
	clear(got[24:28]) // of no data, or it is malformed
	h.len = 0
	if back, _, ok := parseVsock([][]byte{got}); !ok || back != h {
		t.Errorf("parsed %+v, want %+v", back, h)
	}
	if got := NewVsock(0x0807060504030201).Config(); !bytes.Equal(got, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("configuration % x", got)
	}
}

// TestBigEndianHost: for a host of the other byte order the package does not
// build.
func TestBigEndianHost(t *testing.T) {
	for arch, want := range map[string]bool{"amd64": true, "arm64": true, "riscv64": true, "s390x": false, "ppc64": false, "mips": false, "mips64": false} {
		ctx := build.Default
		ctx.GOOS, ctx.GOARCH = "linux", arch
		pkg, err := ctx.ImportDir(".", 0)
		must(t, err)
		if got := slices.Contains(pkg.GoFiles, "byteorder.go"); got != want {
			t.Errorf("%s: littleEndianHost is declared: %v, want %v", arch, got, want)
		}
	}
}
