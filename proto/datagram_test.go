package proto

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestDatagrams(t *testing.T) {
	sent := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), MaxDatagram), []byte("end")}
	var b []byte
	for _, p := range sent {
		b = AppendDatagram(b, p)
	}
	r, buf := bytes.NewReader(b), make([]byte, 3)
	for _, want := range sent {
		got, err := ReadDatagram(r, buf)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	if _, err := ReadDatagram(r, buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, cut := range [][]byte{{0}, {0, 2, 'x'}} {
		if _, err := ReadDatagram(bytes.NewReader(cut), buf); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: %v", cut, err)
		}
	}
	if _, err := ReadDatagram(bytes.NewReader([]byte{0xff, 0xff}), buf); err == nil {
		t.Error("a datagram longer than the longest")
	}
}

func FuzzReadDatagram(f *testing.F) {
	f.Add([]byte{0, 1, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := ReadDatagram(bytes.NewReader(in), nil)
		if err == nil && !bytes.Equal(AppendDatagram(nil, p), in[:DatagramHeader+len(p)]) {
			t.Error("not what was sent")
		}
	})
}
