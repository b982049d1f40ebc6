package engine

import (
	"encoding/binary"
	"fmt"
	"os"
)

// spill is a queue of chunks in a file without a name, for a client that reads
// more slowly than its container writes. A chunk is its stream (1 byte), its
// length (4, big-endian) and its data. The file is made when it is first
// needed, is emptied whenever all has been read, and goes with close, or with
// the daemon. The zero value with a dir is an empty queue.
type spill struct {
	dir      string
	f        *os.File
	from, to int64 // offsets of what waits
}

const spillHeader = 5 // bytes

// left is how much waits, in bytes.
func (s *spill) left() int64 { return s.to - s.from }

// put reports whether there was room for a chunk: less than maxSpill waiting,
// and on the disk.
func (s *spill) put(ch chunk) bool {
	if s.left() >= maxSpill {
		return false
	}
	if s.f == nil && !s.open() {
		return false
	}
	b := make([]byte, spillHeader, spillHeader+len(ch.data))
	b[0] = byte(ch.stream)
	binary.BigEndian.PutUint32(b[1:], uint32(len(ch.data)))
	b = append(b, ch.data...)
	if _, err := s.f.WriteAt(b, s.to); err != nil {
		return false // as good as full; half a chunk is overwritten
	}
	s.to += int64(len(b))
	return true
}

func (s *spill) open() bool {
	f, err := os.CreateTemp(s.dir, ".spill-*")
	if err != nil {
		return false
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return false
	}
	s.f = f
	return true
}

// get takes the oldest chunk of those that wait.
func (s *spill) get() (chunk, error) {
	var head [spillHeader]byte
	if _, err := s.f.ReadAt(head[:], s.from); err != nil {
		return chunk{}, fmt.Errorf("read output kept for a slow client: %w", err)
	}
	data := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := s.f.ReadAt(data, s.from+spillHeader); err != nil {
		return chunk{}, fmt.Errorf("read output kept for a slow client: %w", err)
	}
	s.from += spillHeader + int64(len(data))
	if s.from == s.to {
		s.from, s.to = 0, 0
		s.f.Truncate(0) // a failure leaves bytes that are overwritten
	}
	return chunk{Stream(head[0]), data}, nil
}

// close drops what waits. Idempotent.
func (s *spill) close() {
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
	s.from, s.to = 0, 0
}
