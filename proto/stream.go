package proto

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Kinds of streams.
const (
	// StreamStdio is one standard stream of a process.
	StreamStdio = "stdio"
	// StreamDial is a network connection that the agent opens in the guest.
	// Before anything else the agent sends the byte DialOK; it ends the stream
	// without it when it can't connect. Of the network "udp" it carries
	// datagrams, framed as AppendDatagram says, to and from one socket; of the
	// network "tcp" it is opened at PortForward.
	StreamDial = "dial"
	// StreamArchive carries a tar to or from a container.
	StreamArchive = "archive"
	// StreamListeners tells which ports processes of the guest's own network
	// namespace listen on: a Listeners as a line of JSON at once and after each
	// change, until the host ends the stream.
	StreamListeners = "listeners"
	// StreamSocket is a connection that a container opens to a UNIX socket of
	// the host. The agent opens the stream, at PortRelay; where the host can't
	// connect, or knows no such socket, it closes it.
	StreamSocket = "socket"
	// StreamReplays carries changes made on the host to the agent (Replay), and
	// its answers (Replayed).
	StreamReplays = "replays"
)

// MaxReplay bounds a Replay or Replayed, in bytes.
const MaxReplay = 16 << 10

// Listeners are the ports that can be connected to by the guest's loopback, in
// order.
type Listeners struct {
	TCP []uint16 `json:"tcp"`
	// UDP has none of those that the kernel gives to sockets that ask for no
	// port: theirs are clients.
	UDP []uint16 `json:"udp"`
}

// DialOK is the agent's first byte on a StreamDial that is connected. The host
// may send before it has come.
const DialOK byte = 0

// Names of a process's standard streams in StreamHeader.Stream.
const (
	Stdin  = "stdin"
	Stdout = "stdout"
	Stderr = "stderr"
	TTY    = "tty" // both directions of a terminal
)

// MaxHeader bounds a stream's first line, in bytes with its line feed.
const MaxHeader = 4096

// StreamHeader is the first line of a stream, as JSON with a line feed.
type StreamHeader struct {
	Kind string `json:"kind"` // required

	// For StreamStdio: the process, as in agent.proto, and which stream. For
	// StreamArchive: the container, and the transfer as Stream.
	Container string `json:"container,omitempty"`
	Exec      string `json:"exec,omitempty"`
	Stream    string `json:"stream,omitempty"`

	// For StreamDial: as for net.Dial ("tcp", "udp"), by IP address.
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`

	// For StreamSocket: the socket's name, as the mount of type "socket" has it.
	Socket string `json:"socket,omitempty"`
}

// WriteHeader sends h as the first line of w.
func WriteHeader(w io.Writer, h StreamHeader) error {
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(line)+1 > MaxHeader {
		return fmt.Errorf("stream header of %d bytes: at most %d", len(line)+1, MaxHeader)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// ReadHeader reads the first line of r and not one byte more.
func ReadHeader(r io.Reader) (StreamHeader, error) {
	var h StreamHeader
	line := make([]byte, 0, 256)
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return h, fmt.Errorf("read stream header: %w", err)
		}
		if b[0] == '\n' {
			break
		}
		if len(line)+1 >= MaxHeader {
			return h, fmt.Errorf("stream header: no line feed in %d bytes", MaxHeader)
		}
		line = append(line, b[0])
	}
	if err := json.Unmarshal(line, &h); err != nil {
		return h, fmt.Errorf("stream header: %w", err)
	}
	if h.Kind == "" {
		return h, errors.New("stream header: no kind")
	}
	return h, nil
}
