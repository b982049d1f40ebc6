package proto

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxDatagram is the longest payload of a UDP datagram over IPv4, in bytes.
const MaxDatagram = 65507

// DatagramHeader is how many bytes precede each datagram of a stream: its
// length, big-endian.
const DatagramHeader = 2

// AppendDatagram appends p as it travels on a StreamDial of the network "udp":
//
//	| length (2, big-endian) | payload |
//
// A datagram may be empty. It panics when p is longer than MaxDatagram.
func AppendDatagram(b, p []byte) []byte {
	if len(p) > MaxDatagram {
		panic(fmt.Sprintf("datagram of %d bytes", len(p)))
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
}

// ReadDatagram reads one datagram into buf, which it replaces by a larger one
// where need be, and returns it. The error is io.EOF when the stream has ended
// between two datagrams. r should be buffered.
func ReadDatagram(r io.Reader, buf []byte) ([]byte, error) {
	var head [DatagramHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > MaxDatagram {
		return nil, fmt.Errorf("datagram of %d bytes: at most %d", n, MaxDatagram)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return nil, fmt.Errorf("datagram: %w", io.ErrUnexpectedEOF)
	}
	return buf[:n], nil
}
