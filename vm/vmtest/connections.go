package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"sampan/vm"
	"sampan/vm/vmtest/guest"
	"sampan/vm/vmtest/speed"
)

func connectionTests() map[string]func(*testing.T, vm.Machine) {
	return map[string]func(*testing.T, vm.Machine){
		"echo":           testEcho,
		"usage":          testUsage,
		"half-close":     testHalfClose,
		"closed by peer": testClosedByPeer,
		"many streams":   testManyStreams,
		"many in turn":   testManyInTurn,
		"big to guest":   testBigToGuest,
		"big to host":    testBigToHost,
		"backpressure":   testBackpressure,
		"data on close":  testDataOnClose,
		"refused":        testRefused,
		"context":        testContext,
		"listen":         testListen,
		"listener close": testListenerClose,
		"port in use":    testPortInUse,
		"guest refused":  testGuestRefused,
	}
}

// testUsage wants plausible figures of a machine that has just booted, where the
// driver has any.
func testUsage(t *testing.T, m vm.Machine) {
	meter, ok := m.(vm.Meter)
	if !ok {
		t.Skip("the driver doesn't tell what its machines use")
	}
	u, err := meter.Usage()
	if err != nil || u.CPU <= 0 || u.Memory < 16<<20 || u.Threads < 1 {
		t.Errorf("%+v, %v", u, err)
	}
}

func testEcho(t *testing.T, m vm.Machine) {
	c := command(t, m, "echo")
	for i := range 50 {
		if _, err := fmt.Fprintf(c, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
		if got, want := answer(t, c), fmt.Sprintf("line %d", i); got != want {
			t.Fatalf("echo of %q: %q", want, got)
		}
	}
}

func testHalfClose(t *testing.T, m vm.Machine) {
	c := command(t, m, "echo")
	const text = "all of it"
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a write after CloseWrite succeeded")
	}
	got := within(t, callLimit, "read to the end", func() ([]byte, error) { return io.ReadAll(c) })
	if string(got) != text {
		t.Errorf("after CloseWrite got %q, want %q", got, text)
	}
}

func testClosedByPeer(t *testing.T, m vm.Machine) {
	c, err := m.Dial(t.Context(), guest.ClosePort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := readFailure(c, callLimit); !errors.Is(err, io.EOF) {
		t.Errorf("read after the peer's close: %v, want EOF", err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(callLimit)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = c.Write(make([]byte, 1024))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writes after the peer's close: %v", err)
	}
}

func testManyStreams(t *testing.T, m vm.Machine) {
	const n, size = 200, 100_000
	streams(n, func(i int) {
		c := command(t, m, "source %d %d", size, i)
		want := sum(io.LimitReader(guest.Random(uint64(i)), size))
		if err := c.SetReadDeadline(time.Now().Add(2 * callLimit)); err != nil {
			t.Error(err)
		}
		if got := sum(c); got != want {
			t.Errorf("stream %d: %s, want %s", i, got, want)
		}
	})
}

// testManyInTurn opens 2,000 connections, a few at once, and looks whether each
// carries its own bytes.
func testManyInTurn(t *testing.T, m vm.Machine) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*callLimit)
	defer cancel()
	rate, err := speed.Peer{Dial: m.Dial}.Connections(ctx, 2000, 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f connections a second", rate)
}

// sum is the length and the digest of a stream, with its error if it has one.
func sum(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return fmt.Sprintf("%d bytes, then %v", n, err)
	}
	return fmt.Sprintf("%d %x", n, h.Sum(nil))
}

const bigSize = 64 << 20

func testBigToGuest(t *testing.T, m vm.Machine) {
	c := command(t, m, "sink")
	want := sum(io.LimitReader(guest.Random(7), bigSize))
	begin := time.Now()
	if _, err := io.Copy(c, io.LimitReader(guest.Random(7), bigSize)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := answer(t, c); got != want {
		t.Errorf("the guest got %s, want %s", got, want)
	}
	t.Logf("%d MiB in %s", bigSize>>20, time.Since(begin).Round(time.Millisecond))
}

func testBigToHost(t *testing.T, m vm.Machine) {
	c := command(t, m, "source %d 8", bigSize)
	begin := time.Now()
	got := within(t, 2*callLimit, "read", func() (string, error) { return sum(c), nil })
	if want := sum(io.LimitReader(guest.Random(8), bigSize)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	t.Logf("%d MiB in %s", bigSize>>20, time.Since(begin).Round(time.Millisecond))
}

// testBackpressure fills a connection that nobody reads, in either direction,
// and looks whether others still move.
func testBackpressure(t *testing.T, m vm.Machine) {
	mute, err := m.Dial(t.Context(), guest.MutePort)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	unread := command(t, m, "source %d 1", 16<<20)
	if err := mute.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := mute.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Errorf("writing what nobody reads: %d bytes, %v; want some, and a timeout", n, err)
	}
	testEcho(t, m)
	got := within(t, callLimit, "read late", func() (string, error) { return sum(unread), nil })
	if want := sum(io.LimitReader(guest.Random(1), 16<<20)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// testDataOnClose looks whether what was written before Close arrives.
func testDataOnClose(t *testing.T, m vm.Machine) {
	l, err := m.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := command(t, m, "relay %d", portOf(l))
	back := within(t, callLimit, "accept", l.Accept)
	defer back.Close()
	want := make([]byte, 1<<20)
	if _, err := io.ReadFull(guest.Random(3), want); err != nil {
		t.Fatal(err)
	}
	go func() {
		if _, err := c.Write(want); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	got := within(t, callLimit, "read", func() ([]byte, error) { return io.ReadAll(back) })
	if !bytes.Equal(got, want) {
		t.Errorf("of %d bytes written before Close, %d arrived", len(want), len(got))
	}
}

func testRefused(t *testing.T, m vm.Machine) {
	begin := time.Now()
	c, err := m.Dial(t.Context(), 9999)
	if err == nil {
		c.Close()
	}
	if !refused(err) {
		t.Errorf("dial a port that nobody listens on: %v, want ECONNREFUSED", err)
	}
	if d := time.Since(begin); d > promptLimit {
		t.Errorf("the refusal took %s", d)
	}
}

func testContext(t *testing.T, m vm.Machine) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Dial(ctx, guest.CommandPort); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a cancelled context: %v", err)
	}
}

func testListen(t *testing.T, m vm.Machine) {
	const port = 5000
	l, err := m.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := portOf(l); got != port {
		t.Errorf("listener's port is %d", got)
	}
	streams(20, func(int) {
		if got := answer(t, command(t, m, "dial %d", port)); got != "ok" {
			t.Errorf("the guest dials a listener: %s", got)
		}
	})
	for range 20 {
		c := within(t, callLimit, "accept", l.Accept)
		if err := readFailure(c, callLimit); !errors.Is(err, io.EOF) {
			t.Errorf("read from a closed connection: %v", err)
		}
		c.Close()
	}
}

func testListenerClose(t *testing.T, m vm.Machine) {
	l, err := m.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(l)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	got := within(t, promptLimit, "accept on a closed listener", func() (error, error) { return <-accepted, nil })
	if !errors.Is(got, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", got)
	}
	if got := answer(t, command(t, m, "dial %d", port)); got == "ok" {
		t.Error("the guest reached a closed listener")
	}
	again, err := m.Listen(port)
	if err != nil {
		t.Fatalf("listen again: %v", err)
	}
	again.Close()
}

func testPortInUse(t *testing.T, m vm.Machine) {
	l, err := m.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if twice, err := m.Listen(portOf(l)); err == nil {
		twice.Close()
		t.Error("two listeners on one port")
	}
}

func testGuestRefused(t *testing.T, m vm.Machine) {
	begin := time.Now()
	if got := answer(t, command(t, m, "dial 7777")); got == "ok" {
		t.Error("the guest reached a port that nobody listens on")
	}
	if d := time.Since(begin); d > promptLimit {
		t.Errorf("the refusal took %s", d)
	}
}
