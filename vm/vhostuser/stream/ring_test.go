package stream

import (
	"bytes"
	"testing"
)

// FuzzRing compares the ring with a bytes.Buffer.
func FuzzRing(f *testing.F) {
	f.Add([]byte{200, 1, 100, 2, 255, 255, 1, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		r := ring{limit: 9000}
		var want bytes.Buffer
		for i, op := range script {
			size := int(op&0x7f) * 100
			if op&0x80 != 0 {
				p := bytes.Repeat([]byte{byte(i)}, size)
				n := r.put(p)
				if n != min(size, r.limit-want.Len()) {
					t.Fatalf("put %d of %d beside %d", n, size, want.Len())
				}
				want.Write(p[:n])
			} else {
				got := make([]byte, size)
				got = got[:r.get(got)]
				if !bytes.Equal(got, want.Next(size)) {
					t.Fatalf("got the wrong %d bytes", len(got))
				}
			}
			if r.len() != want.Len() {
				t.Fatalf("holds %d, want %d", r.len(), want.Len())
			}
		}
	})
}
