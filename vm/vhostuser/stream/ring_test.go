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
		if len(script)%2 == 1 { // with buffers that go back to the pools
			r.limit = 256 << 10
		}
		script = script[:min(len(script), 40)]
		var want bytes.Buffer
		for i, op := range script {
			size := int(op&0x7f) * r.limit / 90
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

// TestIdle: what is open and silent holds next to nothing, however busy it was.
func TestIdle(t *testing.T) {
	h := New(1<<20, nil)
	for _, n := range []int{1, 64 << 10, 1 << 20} {
		if _, err := h.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if h.TryWrite([][]byte{make([]byte, 1<<20)}) {
			t.Error("more is buffered than the limit allows")
		}
		for got := 0; got < n; {
			k, err := h.Read(make([]byte, 100<<10))
			if err != nil {
				t.Fatal(err)
			}
			got += k
		}
		if len(h.buf.b) > maxIdle {
			t.Errorf("after %d bytes, empty, it holds %d", n, len(h.buf.b))
		}
	}
}
