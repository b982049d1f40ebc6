package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"sampan/proto"
)

// streams are the connections that carry a process's standard streams.
type streams struct {
	stdin  net.Conn            // nil: none; the terminal's connection with a tty
	output map[Stream]net.Conn // what to read
	tty    bool
}

// openStreams opens a process's streams while call starts it: the agent wants
// both, in any order.
func openStreams(ctx context.Context, g Guest, container, exec string, want *proto.Streams, call func(context.Context) error) (*streams, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &streams{output: map[Stream]net.Conn{}, tty: want.Tty}
	started := make(chan error, 1)
	go func() { started <- call(ctx) }()
	err := s.open(ctx, g, container, exec, want)
	if err != nil {
		cancel() // of the call, too
		callErr := <-started
		s.close()
		if callErr != nil && !errors.Is(callErr, context.Canceled) {
			return nil, callErr // it has the reason
		}
		return nil, fmt.Errorf("open streams: %w", err)
	}
	if err := <-started; err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *streams) open(ctx context.Context, g Guest, container, exec string, want *proto.Streams) error {
	dial := func(name string) (net.Conn, error) { return g.Stdio(ctx, container, exec, name) }
	var err error
	if want.Tty {
		var conn net.Conn
		if conn, err = dial(proto.TTY); err == nil {
			s.stdin, s.output[Stdout] = conn, conn
		}
		return err
	}
	if want.Stdin {
		if s.stdin, err = dial(proto.Stdin); err != nil {
			return err
		}
	}
	if want.Stdout {
		if s.output[Stdout], err = dial(proto.Stdout); err != nil {
			delete(s.output, Stdout)
			return err
		}
	}
	if want.Stderr {
		if s.output[Stderr], err = dial(proto.Stderr); err != nil {
			delete(s.output, Stderr)
			return err
		}
	}
	return nil
}

// pump reads all output until its end, handing each chunk to put. It returns
// when all streams have ended.
func (s *streams) pump(put func(Stream, []byte)) {
	var wg sync.WaitGroup
	for id, conn := range s.output {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := conn.Read(buf)
				if n > 0 {
					put(id, append([]byte(nil), buf[:n]...))
				}
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}

// feed copies r to the process's stdin, and ends that after the last byte (a
// terminal has no end).
func (s *streams) feed(r io.Reader) error {
	_, err := io.Copy(s.stdin, r)
	if s.tty {
		return err
	}
	if half, ok := s.stdin.(interface{ CloseWrite() error }); ok {
		return errors.Join(err, half.CloseWrite())
	}
	return errors.Join(err, s.stdin.Close())
}

// close closes the connections. Idempotent.
func (s *streams) close() {
	if s.stdin != nil {
		s.stdin.Close()
	}
	for _, c := range s.output {
		c.Close()
	}
}
