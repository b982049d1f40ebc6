// Package speed measures stream connections: those of a machine, and others to
// compare them with.
package speed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"sampan/vm/vmtest/guest"
)

// Peer is something that serves vm/vmtest/guest's commands on
// guest.CommandPort: a machine, or a goroutine behind another kind of socket.
type Peer struct {
	// Dial opens a connection, which has CloseWrite. Required.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
}

// ToGuest sends n bytes over one connection, in writes of 128 KiB, and returns
// MiB/s up to the peer's word that it has read them all. Cancelling ctx ends
// it, as it does the others.
func (p Peer) ToGuest(ctx context.Context, n int) (float64, error) {
	return p.bulk(ctx, n, "drain", func(c guest.Conn) error {
		buf := make([]byte, 128<<10)
		for left := n; left > 0; left -= len(buf) {
			buf = buf[:min(left, len(buf))]
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		var got int
		if _, err := fmt.Fscan(c, &got); err != nil {
			return err
		}
		if got != n {
			return fmt.Errorf("the peer got %d bytes, want %d", got, n)
		}
		return nil
	})
}

// ToHost reads n bytes over one connection and returns MiB/s.
func (p Peer) ToHost(ctx context.Context, n int) (float64, error) {
	return p.bulk(ctx, n, fmt.Sprintf("zeros %d", n), func(c guest.Conn) error {
		buf := make([]byte, 128<<10)
		got := 0
		for {
			k, err := c.Read(buf)
			got += k
			if errors.Is(err, io.EOF) && got == n {
				return nil
			}
			if err != nil {
				return fmt.Errorf("%d of %d bytes: %w", got, n, err)
			}
		}
	})
}

func (p Peer) bulk(ctx context.Context, n int, command string, work func(guest.Conn) error) (float64, error) {
	var took time.Duration
	err := p.with(ctx, command, func(c guest.Conn) error {
		begin := time.Now()
		err := work(c)
		took = time.Since(begin)
		return err
	})
	return float64(n) / (1 << 20) / took.Seconds(), err
}

// RoundTrip sends a byte to and fro n times, and returns the mean time in
// milliseconds.
func (p Peer) RoundTrip(ctx context.Context, n int) (float64, error) {
	var took time.Duration
	err := p.with(ctx, "echo", func(c guest.Conn) error {
		begin := time.Now()
		for range n {
			if err := echo(c, 'x'); err != nil {
				return err
			}
		}
		took = time.Since(begin)
		return nil
	})
	return took.Seconds() * 1000 / float64(n), err
}

// Connections opens n connections, some at once, has each echo something and
// closes it, and returns how many that were a second.
func (p Peer) Connections(ctx context.Context, n, atOnce int) (float64, error) {
	begin := time.Now()
	errs := make([]error, atOnce)
	var all sync.WaitGroup
	for w := range atOnce {
		all.Go(func() {
			for i := w; i < n && errs[w] == nil; i += atOnce {
				errs[w] = p.with(ctx, "echo", func(c guest.Conn) error { return echo(c, byte(i)) })
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// echo sends a byte and expects it back.
func echo(c net.Conn, b byte) error {
	got := []byte{b}
	if _, err := c.Write(got); err != nil {
		return err
	}
	if _, err := c.Read(got); err != nil {
		return err
	}
	if got[0] != b {
		return fmt.Errorf("sent %#x, got %#x", b, got[0])
	}
	return nil
}

// with opens a connection for a command.
func (p Peer) with(ctx context.Context, command string, work func(guest.Conn) error) error {
	c, err := p.Dial(ctx, guest.CommandPort)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := fmt.Fprintln(c, command); err != nil {
		return err
	}
	return work(c.(guest.Conn))
}
