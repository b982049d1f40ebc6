package stream

// minRing is the smallest buffer that is allocated.
const minRing = 4 << 10

// ring is a byte queue that grows up to a limit.
type ring struct {
	limit      int
	b          []byte
	start, cnt int
}

func (r *ring) len() int { return r.cnt }

func (r *ring) reset() { r.b, r.start, r.cnt = nil, 0, 0 }

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
	}
	return n
}

func (r *ring) grow(need int) {
	size := max(len(r.b), min(minRing, r.limit))
	for size < need {
		size = min(2*size, r.limit)
	}
	b := make([]byte, size)
	n := r.cnt
	r.get(b[:n])
	r.b, r.start, r.cnt = b, 0, n
}
