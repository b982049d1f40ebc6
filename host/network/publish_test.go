package network

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sampan/vm"
)

// container is a server on loopback that stands for a container's port.
func container(t *testing.T, serve func(*net.TCPConn)) func(context.Context) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
}

func publish(t *testing.T, dial func(context.Context) (net.Conn, error)) *Port {
	t.Helper()
	p, err := Publish(Spec{Proto: "tcp", HostIP: "127.0.0.1", Dial: dial, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func connect(t *testing.T, p *Port) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestHalfClose(t *testing.T) {
	// The answer comes only after the end of the question.
	p := publish(t, container(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(b))
	}))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c := connect(t, p)
			io.WriteString(c, "question")
			c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "QUESTION" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
	wg.Wait()
}

func TestRefusedIsReset(t *testing.T) {
	p := publish(t, func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED })
	wantReset(t, p)
}

// wantReset connects and wants a reset, which may come before connect returns.
func wantReset(t *testing.T, p *Port) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, p.Addr())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// A container that is found closed only when the first byte is read, as over
// vsock, looks the same.
func TestLateRefusalIsReset(t *testing.T) {
	p := publish(t, func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		return refused{a}, nil
	})
	wantReset(t, p)
}

type refused struct{ net.Conn }

func (refused) Read([]byte) (int, error) { return 0, syscall.ECONNREFUSED }

func TestClose(t *testing.T) {
	p := publish(t, container(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	c := connect(t, p)
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Close waits for an open connection")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its port")
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestConflict(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	p := publish(t, dial)
	_, err := Publish(Spec{Proto: "tcp", HostIP: "127.0.0.1", HostPort: p.Addr().Port, Dial: dial})
	if !errors.Is(err, ErrInUse) || !strings.HasPrefix(err.Error(), "Bind for 127.0.0.1:") || !strings.HasSuffix(err.Error(), " failed: port is already allocated") {
		t.Errorf("got %v", err)
	}
	if _, err := Publish(Spec{Proto: "sctp", Dial: dial}); !errors.Is(err, vm.ErrUnsupported) {
		t.Errorf("sctp: got %v", err)
	}
}

// The card carries frames: an ARP request for the gateway is answered.
func TestAttach(t *testing.T) {
	n, err := New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // one machine after the other
		nic, uplink, detach, err := n.Attach()
		if err != nil {
			t.Fatal(err)
		}
		if uplink.Gateway != Gateway || uplink.Mac != nic.MAC.String() {
			t.Errorf("uplink %v", uplink)
		}
		card, err := net.FileConn(nic.File)
		if err != nil {
			t.Fatal(err)
		}
		nic.File.Close()
		frame := append(append(bytes.Repeat([]byte{0xff}, 6), nic.MAC...), 8, 6, // broadcast, ARP
			0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
		frame = append(append(frame, nic.MAC...), 192, 168, 127, 2)
		frame = append(append(frame, make([]byte, 6)...), 192, 168, 127, 1)
		if _, err := card.Write(frame); err != nil {
			t.Fatal(err)
		}
		card.SetDeadline(time.Now().Add(5 * time.Second))
		answer := make([]byte, 2000)
		l, err := card.Read(answer)
		if err != nil || l < 42 || !bytes.Equal(answer[:6], nic.MAC) || answer[21] != 2 {
			t.Errorf("answer %x, %v", answer[:l], err)
		}
		detach()
		detach()
		card.Close()
	}
}
