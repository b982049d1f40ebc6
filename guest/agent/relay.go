package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/proto"
)

const (
	// maxRelayed bounds the connections of a container to one of the host's
	// sockets; more wait to be accepted.
	maxRelayed = 256
	// acceptPause is how long a relay rests when the agent has no descriptor
	// left for the next connection.
	acceptPause = 100 * time.Millisecond
	// socketMode begins the option of a socket's mode.
	socketMode = "mode="
)

// relay is a UNIX socket whose connections go on to one of the host's
// (proto.StreamSocket). Only bytes cross: no descriptors, no credentials.
type relay struct {
	name string // of the host's socket
	ln   *net.UnixListener
	dial func(port uint32) (net.Conn, error)
	log  *slog.Logger
	wg   sync.WaitGroup
	done chan struct{} // closed by close
	once sync.Once

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once closed
}

// relay makes the socket that m is about, and returns where it is. It is in
// nobody's reach but through the container's mount.
func (r *rootfs) relay(m specs.Mount, dial func(uint32) (net.Conn, error), log *slog.Logger) (string, error) {
	mode, err := modeOf(m.Options)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.run, "sockets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, strconv.Itoa(len(r.relays)))
	rl, err := newRelay(path, m.Source, mode, dial, log)
	if err != nil {
		return "", err
	}
	r.relays = append(r.relays, rl)
	return path, nil
}

func modeOf(options []string) (fs.FileMode, error) {
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, socketMode); ok {
			mode, err := strconv.ParseUint(text, 8, 9)
			if err != nil {
				return 0, fmt.Errorf("option %q: %w", o, err)
			}
			return fs.FileMode(mode), nil
		}
	}
	return 0, errors.New("a socket without a mode")
}

func newRelay(path, name string, mode fs.FileMode, dial func(uint32) (net.Conn, error), log *slog.Logger) (*relay, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // it goes with its folder
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	r := &relay{name: name, ln: ln, dial: dial, log: log, done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	r.wg.Go(r.serve)
	return r, nil
}

// serve accepts until the relay is closed.
func (r *relay) serve() {
	slots := make(chan struct{}, maxRelayed)
	for {
		select {
		case slots <- struct{}{}:
		case <-r.done:
			return
		}
		conn, err := r.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-slots
			r.log.Warn("relay to a socket of the host: " + err.Error())
			select {
			case <-time.After(acceptPause):
			case <-r.done:
			}
			continue
		}
		r.wg.Go(func() {
			defer func() { <-slots }()
			if err := r.carry(conn); err != nil {
				r.log.Warn("relay to a socket of the host: " + err.Error())
			}
		})
	}
}

// carry serves one connection, and closes it.
func (r *relay) carry(conn *net.UnixConn) error {
	defer conn.Close()
	stream, err := r.dial(proto.PortRelay)
	if err != nil {
		return err
	}
	defer stream.Close()
	if !r.hold(conn, stream) {
		return nil
	}
	defer r.drop(conn, stream)
	if err := proto.WriteHeader(stream, proto.StreamHeader{Kind: proto.StreamSocket, Socket: r.name}); err != nil {
		return err
	}
	target, ok := stream.(duplex)
	if !ok {
		return errors.New("stream without half-close")
	}
	proxy(target, conn)
	return nil
}

// hold has close end the connections; false when it has been called.
func (r *relay) hold(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	for _, c := range conns {
		r.conns[c] = struct{}{}
	}
	return true
}

func (r *relay) drop(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		delete(r.conns, c)
	}
}

// close ends the socket and all its connections, and waits for them. Idempotent.
func (r *relay) close() {
	r.once.Do(func() {
		close(r.done)
		r.ln.Close()
		r.mu.Lock()
		conns := r.conns
		r.conns = nil
		r.mu.Unlock()
		for c := range conns {
			c.Close()
		}
	})
	r.wg.Wait() // bounded: dialling ends by itself, the rest by the above
}
