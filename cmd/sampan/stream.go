package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/moby/term"
)

// stream connects our standard streams with those of a process.
//
// With a terminal both directions are raw bytes; without one the process's
// stdout and stderr share the connection in frames (stdcopy).
type stream struct {
	conn       client.HijackedResponse
	tty        bool
	in         io.Reader // nil: not attached
	out, err   io.Writer
	detachKeys []byte
}

// copy returns when the process's output has ended: nil, or term.EscapeError
// when the user has typed the detach keys.
//
// The goroutine that reads our stdin can't be woken; it is left behind and
// ends with the program.
func (s *stream) copy(ctx context.Context) error {
	outDone, inDone := make(chan error, 1), make(chan error, 1)
	go func() { outDone <- s.copyOut() }()
	if s.in != nil {
		go func() { inDone <- s.copyIn() }()
	} else if err := s.conn.CloseWrite(); err != nil {
		inDone <- err
	}
	for {
		select {
		case err := <-outDone:
			return err
		case err := <-inDone:
			if errors.As(err, new(term.EscapeError)) {
				return err
			}
			// Other errors of stdin: the process has ended or has closed its
			// end; its output and exit code tell.
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *stream) copyOut() error {
	if s.tty {
		_, err := io.Copy(s.out, s.conn.Reader)
		return err
	}
	_, err := stdcopy.StdCopy(s.out, s.err, s.conn.Reader)
	return err
}

func (s *stream) copyIn() error {
	in := s.in
	if s.tty && len(s.detachKeys) > 0 {
		in = term.NewEscapeProxy(in, s.detachKeys)
	}
	_, err := io.Copy(s.conn.Conn, in)
	if errors.As(err, new(term.EscapeError)) {
		return err
	}
	// The process sees the end of its stdin; its output goes on.
	return errors.Join(err, s.conn.CloseWrite())
}

// defaultDetachKeys leave a terminal session without ending the process.
const defaultDetachKeys = "ctrl-p,ctrl-q"

func detachSequence(keys string) ([]byte, error) {
	if keys == "" {
		keys = defaultDetachKeys
	}
	b, err := term.ToBytes(keys)
	if err != nil {
		return nil, fmt.Errorf("invalid detach keys (%s): %w", keys, err)
	}
	return b, nil
}
