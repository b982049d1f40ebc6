package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"sampan/vm"
	"sampan/vm/vmtest/guest"
)

const (
	// readyLimit is for a boot under emulation on a busy machine.
	readyLimit = 90 * time.Second
	// callLimit is for anything that needs no boot.
	callLimit = 30 * time.Second
	// promptLimit is for what must happen at once.
	promptLimit = 5 * time.Second
)

// Run runs the suite. boot starts a machine with vm/vmtest/guest in it; Run
// stops it.
func Run(t *testing.T, boot func(t *testing.T) vm.Machine) {
	t.Run("connections", func(t *testing.T) {
		m := ready(t, boot)
		for name, test := range connectionTests() {
			t.Run(name, func(t *testing.T) { test(t, m) })
		}
		t.Run("nettest/dial", func(t *testing.T) { nettest.TestConn(t, pipes(m, false)) })
		t.Run("nettest/listen", func(t *testing.T) { nettest.TestConn(t, pipes(m, true)) })
	})
	for name, test := range endTests() {
		t.Run("end/"+name, func(t *testing.T) { test(t, ready(t, boot)) })
	}
}

// ready boots a machine and waits for the guest's call.
func ready(t *testing.T, boot func(t *testing.T) vm.Machine) vm.Machine {
	t.Helper()
	m := boot(t)
	t.Cleanup(func() { stop(t, m) })
	l, err := m.Listen(guest.ReadyPort)
	if err != nil {
		t.Fatalf("listen for the guest's call: %v", err)
	}
	defer l.Close()
	c := within(t, readyLimit, "the guest's call", l.Accept)
	c.Close()
	return m
}

func stop(t *testing.T, m vm.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// within fails the test when f has not returned in time, or with an error.
func within[T any](t testing.TB, limit time.Duration, what string, f func() (T, error)) T {
	t.Helper()
	v, err := attempt(t, limit, what, f)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return v
}

// attempt fails the test when f has not returned in time.
func attempt[T any](t testing.TB, limit time.Duration, what string, f func() (T, error)) (T, error) {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-time.After(limit):
		t.Fatalf("%s: nothing after %s", what, limit)
		panic("unreachable")
	}
}

// command opens a connection and sends the line of a command.
func command(t testing.TB, m vm.Machine, format string, args ...any) guest.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	c, err := m.Dial(ctx, guest.CommandPort)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, format+"\n", args...); err != nil {
		t.Fatalf("send command: %v", err)
	}
	return c.(guest.Conn)
}

// pipes makes connections with both ends here: one is dialled, the guest
// dials back, and relays. swap makes the accepted end the first.
func pipes(m vm.Machine, swap bool) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := m.Listen(0)
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		defer cancel()
		if c1, err = m.Dial(ctx, guest.CommandPort); err != nil {
			return nil, nil, nil, err
		}
		if _, err = fmt.Fprintf(c1, "relay %d\n", portOf(l)); err == nil {
			defer context.AfterFunc(ctx, func() { l.Close() })()
			c2, err = l.Accept()
		}
		if err != nil {
			c1.Close()
			return nil, nil, nil, err
		}
		stop = func() {
			c1.Close()
			c2.Close()
		}
		if swap {
			return c2, c1, stop, nil
		}
		return c1, c2, stop, nil
	}
}

// portOf is the port of a listener. Its address ends in it, whatever its type.
func portOf(l net.Listener) (port uint32) {
	text := l.Addr().String()
	if _, err := fmt.Sscan(text[strings.LastIndexByte(text, ':')+1:], &port); err != nil {
		panic("listener's address without a port: " + text)
	}
	return port
}

// answer reads one line.
func answer(t testing.TB, c net.Conn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(callLimit)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return strings.TrimSpace(line)
}

// readFailure reads until c fails, and tells how.
func readFailure(c net.Conn, limit time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	if err == nil {
		return io.EOF
	}
	return err
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// streams runs f n times at once and waits.
func streams(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
