// Package relay carries connections that containers open to UNIX sockets of the
// host.
//
//	container ── UNIX socket of the agent ══ vsock ══> Relay ──> the host's socket
//
// The agent opens a stream for each connection (proto.StreamSocket) and names the
// socket by a random name, which is all that gives access to it: the Relay knows
// only the sockets that somebody has added, and only as long. Bytes cross, and
// half-closes; descriptors and credentials don't.
package relay

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"sampan/proto"
)

const (
	// maxConns bounds the connections of all containers together: each holds two
	// of the daemon's descriptors. What comes beyond is closed.
	maxConns = 1024
	// headerTimeout is how long a stream may take to say what it is about.
	headerTimeout = 10 * time.Second
)

// ErrDatagram is wrapped by the error about a socket without connections, such
// as /dev/log.
var ErrDatagram = errors.New("a datagram socket can't be relayed")

// Relay is the table of sockets. Its methods may be called from several
// goroutines.
type Relay struct {
	log   *slog.Logger
	slots chan struct{}

	mu      sync.Mutex
	sockets map[string]*Socket
}

// New returns a Relay to no sockets.
func New(log *slog.Logger) *Relay {
	return &Relay{log: log, slots: make(chan struct{}, maxConns), sockets: map[string]*Socket{}}
}

// A Socket is one of the host's that the guest can connect to.
type Socket struct {
	relay  *Relay
	name   string
	target *target
	ctx    context.Context // of its connections; ended by Close
	cancel context.CancelFunc
	once   sync.Once
}

// Add gives access to the socket at a path, as this process has it. Symbolic
// links are resolved now, and never again; a socket that is replaced is not
// followed either. The error wraps fs.ErrNotExist, fs.ErrPermission, ErrDatagram
// or what the host says.
func (r *Relay) Add(path string) (*Socket, error) {
	t, err := openTarget(path)
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", path, err)
	}
	var random [16]byte
	rand.Read(random[:]) // never fails
	s := &Socket{relay: r, name: hex.EncodeToString(random[:]), target: t}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	r.mu.Lock()
	r.sockets[s.name] = s
	r.mu.Unlock()
	return s, nil
}

// Name is what the guest calls the socket by.
func (s *Socket) Name() string { return s.name }

// Close takes the access back and ends the connections. Idempotent.
func (s *Socket) Close() error {
	s.once.Do(func() {
		s.relay.mu.Lock()
		delete(s.relay.sockets, s.name)
		s.relay.mu.Unlock()
		s.cancel()
		s.target.close()
	})
	return nil
}

// Serve accepts a machine's streams until the listener is closed, as it is with
// the machine, and waits for the end of those under way, which are cut then.
func (r *Relay) Serve(ln net.Listener) error {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		stream, err := ln.Accept()
		if err != nil {
			return err
		}
		select {
		case r.slots <- struct{}{}:
		default:
			r.log.Warn("too many connections to sockets of the host", "limit", maxConns)
			stream.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-r.slots }()
			if err := r.serve(ctx, stream); err != nil {
				r.log.Warn("connection to a socket of the host", "error", err)
			}
		})
	}
}

// serve carries one connection until it has ended both ways, or ctx has.
func (r *Relay) serve(ctx context.Context, stream net.Conn) error {
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	stream.SetReadDeadline(time.Now().Add(headerTimeout))
	h, err := proto.ReadHeader(stream)
	if err != nil {
		return err
	}
	stream.SetReadDeadline(time.Time{})
	r.mu.Lock()
	s := r.sockets[h.Socket]
	r.mu.Unlock()
	if h.Kind != proto.StreamSocket || s == nil {
		return fmt.Errorf("a stream of the kind %q to a socket that nobody has shared", h.Kind)
	}
	dialing, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	conn, err := s.target.dial(dialing)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer context.AfterFunc(s.ctx, func() { conn.Close(); stream.Close() })()
	splice(stream, conn)
	return nil
}

// splice copies both ways, passing each half-close on. An error in one direction
// ends both: so does the guest's closing of the whole stream.
func splice(stream net.Conn, conn *net.UnixConn) {
	cut := func() { stream.Close(); conn.Close() }
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(conn, stream)
		if err != nil || conn.CloseWrite() != nil {
			cut()
		}
	})
	_, err := io.Copy(stream, conn)
	half, ok := stream.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		cut()
	}
	wg.Wait()
}
