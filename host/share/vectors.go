package share

// total is the length of all of v.
func total(v [][]byte) int {
	n := 0
	for _, b := range v {
		n += len(b)
	}
	return n
}

// cut is v without its first off bytes, and at most size bytes long.
func cut(v [][]byte, off, size int) [][]byte {
	r := make([][]byte, 0, len(v))
	for _, b := range v {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		b = b[off:]
		off = 0
		b = b[:min(len(b), size)]
		if size -= len(b); len(b) > 0 {
			r = append(r, b)
		}
	}
	return r
}

// gather copies what is in v from off on to dst.
func gather(dst []byte, v [][]byte, off int) int {
	n := 0
	for _, b := range v {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(dst[n:], b[off:])
		off = 0
	}
	return n
}

// scatter copies src into v from off on.
func scatter(v [][]byte, src []byte, off int) {
	for _, b := range v {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		src = src[copy(b[off:], src):]
		off = 0
	}
}
