package stream

import (
	"errors"
	"io"
	"net"
	"time"
)

// Conn is a net.Conn but for Close and CloseWrite, which depend on what is at
// the other end. Its errors are *net.OpError, as those of package net.
type Conn struct {
	In, Out       *Half
	Local, Remote net.Addr
}

// Read is net.Conn's.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.In.Read(p)
	return n, c.wrap("read", err)
}

// Write is net.Conn's.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Out.Write(p)
	return n, c.wrap("write", err)
}

// LocalAddr is net.Conn's.
func (c *Conn) LocalAddr() net.Addr { return c.Local }

// RemoteAddr is net.Conn's.
func (c *Conn) RemoteAddr() net.Addr { return c.Remote }

// SetDeadline is net.Conn's.
func (c *Conn) SetDeadline(t time.Time) error {
	c.Out.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

// SetReadDeadline is net.Conn's.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.wrap("set", c.In.SetReadDeadline(t))
}

// SetWriteDeadline is net.Conn's.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.Out.SetWriteDeadline(t)
	return nil
}

// wrap says what failed between whom. EOF stays bare, as readers compare it.
func (c *Conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: c.Local.Network(), Source: c.Local, Addr: c.Remote, Err: err}
}
