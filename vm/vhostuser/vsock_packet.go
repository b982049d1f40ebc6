package vhostuser

import "encoding/binary"

// vsockHeaderSize is the length of a packet's header (virtio 1.2, 5.10.6):
//
//	src_cid u64, dst_cid u64, src_port u32, dst_port u32, len u32,
//	type u16, op u16, flags u32, buf_alloc u32, fwd_cnt u32
const vsockHeaderSize = 44

const typeStream = 1

const (
	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown: what the sender won't do any more.
const (
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

// vsockHeader is what goes before each packet's data.
type vsockHeader struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	typ, op          uint16
	flags            uint32
	alloc, fwd       uint32
}

// parseVsock splits a packet; false means that it is malformed.
func parseVsock(bufs [][]byte) (h vsockHeader, data [][]byte, ok bool) {
	var b [vsockHeaderSize]byte
	n := 0
	for _, part := range bufs {
		n += copy(b[n:], part)
	}
	if n < len(b) {
		return h, nil, false
	}
	le := binary.LittleEndian
	h = vsockHeader{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		len: le.Uint32(b[24:]),
		typ: le.Uint16(b[28:]), op: le.Uint16(b[30:]),
		flags: le.Uint32(b[32:]), alloc: le.Uint32(b[36:]), fwd: le.Uint32(b[40:]),
	}
	if uint64(total(bufs)) < vsockHeaderSize+uint64(h.len) {
		return h, nil, false
	}
	return h, window(bufs, vsockHeaderSize, int(h.len)), true
}

// put writes the header into the beginning of bufs, which are long enough.
func (h *vsockHeader) put(bufs [][]byte) {
	le := binary.LittleEndian
	b := make([]byte, 0, vsockHeaderSize)
	b = le.AppendUint64(b, h.srcCID)
	b = le.AppendUint64(b, h.dstCID)
	b = le.AppendUint32(b, h.srcPort)
	b = le.AppendUint32(b, h.dstPort)
	b = le.AppendUint32(b, h.len)
	b = le.AppendUint16(b, h.typ)
	b = le.AppendUint16(b, h.op)
	b = le.AppendUint32(b, h.flags)
	b = le.AppendUint32(b, h.alloc)
	b = le.AppendUint32(b, h.fwd)
	for _, part := range bufs {
		b = b[copy(part, b):]
	}
}

// window returns the n bytes of bufs behind the first skip.
func window(bufs [][]byte, skip, n int) [][]byte {
	out := make([][]byte, 0, len(bufs))
	for _, b := range bufs {
		k := min(skip, len(b))
		skip -= k
		b = b[k:]
		b = b[:min(n, len(b))]
		n -= len(b)
		if len(b) > 0 {
			out = append(out, b)
		}
	}
	return out
}
