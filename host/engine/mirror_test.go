package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"sampan/host/network"
)

// noGuest can't be connected to.
type noGuest struct{ Guest }

func (noGuest) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("no guest")
}

// A port that somebody on the host holds is told of, and mirrored when it is
// free, though nothing changes in the guest.
func TestMirrorRetries(t *testing.T) {
	holder, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	log := slog.New(slog.DiscardHandler)
	e := &Engine{log: log, ports: network.NewPorts(log)}
	changes, done := make(chan []mirrored), make(chan struct{})
	go func() {
		defer close(done)
		e.mirrorChanges(noGuest{}, changes)
	}()
	port := uint16(holder.Addr().(*net.TCPAddr).Port)
	changes <- []mirrored{{"tcp", port}}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	wait("nothing is told", func() bool { return len(e.mirror.warnings()) == 1 })
	holder.Close()
	wait("it is still not mirrored", func() bool { return len(e.mirror.warnings()) == 0 })
	// Without a guest it is reset at once, which may show here already.
	c, err := net.Dial("tcp4", holder.Addr().String())
	if err == nil {
		c.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	changes <- nil
	wait("a port that is not wanted any more is still there", func() bool {
		c, err := net.Dial("tcp4", holder.Addr().String())
		if err == nil {
			c.Close()
		}
		return err != nil && !errors.Is(err, syscall.ECONNRESET)
	})
	close(changes)
	<-done
}
