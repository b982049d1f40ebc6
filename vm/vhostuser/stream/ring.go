package stream

import (
	"math/bits"
	"sync"
)

const (
	// minRing is the smallest buffer that is allocated.
	minRing = 4 << 10
	// maxIdle is the largest that an empty ring keeps: a connection that was
	// busy once, and is only open now, costs no more.
	maxIdle = 64 << 10
)

// pools has buffers above maxIdle, by the logarithm of their size: a bulk
// transfer empties its ring a thousand times a second.
var pools [32]sync.Pool

// ring is a byte queue that grows up to a limit.
type ring struct {
	limit      int
	b          []byte
	start, cnt int
}

func (r *ring) len() int { return r.cnt }

// reset empties the ring.
func (r *ring) reset() {
	r.start, r.cnt = 0, 0
	r.release()
	r.b = nil
}

// release lets go of a large buffer; the ring is empty.
func (r *ring) release() {
	n := len(r.b)
	if n <= maxIdle {
		return
	}
	if n&(n-1) == 0 {
		b := r.b
		pools[bits.Len(uint(n))-1].Put(&b)
	}
	r.b = nil
}

// put appends as much of p as there is room for.
func (r *ring) put(p []byte) int {
	p = p[:min(len(p), r.limit-r.cnt)]
	if r.cnt+len(p) > len(r.b) {
		r.grow(r.cnt + len(p))
	}
	n := len(p)
	for len(p) > 0 {
		end := (r.start + r.cnt) % len(r.b)
		k := copy(r.b[end:min(len(r.b), end+len(r.b)-r.cnt)], p)
		r.cnt += k
		p = p[k:]
	}
	return n
}

// get takes up to len(p) bytes from the front.
func (r *ring) get(p []byte) int {
	n := 0
	for n < len(p) && r.cnt > 0 {
		k := copy(p[n:], r.b[r.start:min(len(r.b), r.start+r.cnt)])
		n += k
		r.cnt -= k
		r.start = (r.start + k) % len(r.b)
	}
	if r.cnt == 0 {
		r.start = 0
		r.release()
	}
	return n
}

func (r *ring) grow(need int) {
	size := max(len(r.b), min(minRing, r.limit))
	for size < need {
		size = min(2*size, r.limit)
	}
	b := allocate(size)
	n := r.cnt
	r.get(b[:n])
	r.b, r.start, r.cnt = b, 0, n
}

// allocate returns a buffer with anything in it.
func allocate(size int) []byte {
	if size > maxIdle && size&(size-1) == 0 {
		if p, ok := pools[bits.Len(uint(size))-1].Get().(*[]byte); ok {
			return *p
		}
	}
	return make([]byte, size)
}
