// Package witness sits between the clients of a Docker API and its daemon, and
// holds what both say against Docker's own description of it: the swagger files
// in the module github.com/moby/moby/api. It is for tests alone.
//
// A Proxy hands on every byte as it is, half-closes included, and reads along:
// nobody notices it, whatever a connection turns into. What it has to object to
// are Findings. What they are named by is the same for every container, so that
// a list of exceptions can name them: "ContainerInspect answer .Config.Foo:
// unknown".
package witness

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Finding is what one side said and the description does not allow.
type Finding struct {
	// What is said of which field of which operation.
	What string
	// Version of the API in which it was said, and the request.
	Version, Request string
}

func (f Finding) String() string { return f.What + " (" + f.Request + ", version " + f.Version + ")" }

// Proxy is a socket at which clients find a daemon.
type Proxy struct {
	// Socket is where the daemon listens.
	Socket string
	// Start is called when nobody listens there; optional.
	Start func() error
	// API describes what may be said.
	API *API

	listener net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	findings []Finding
	seen     map[string]bool // of findings
	requests []string
	open     map[net.Conn]bool
	closed   bool
}

// remembered is how many requests a proxy can tell of.
const remembered = 60

// Listen serves clients at path until Close.
func (p *Proxy) Listen(path string) error {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return err
	}
	p.listener, p.seen, p.open = ln, map[string]bool{}, map[net.Conn]bool{}
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed
			}
			p.wg.Go(func() { p.serve(conn.(*net.UnixConn)) })
		}
	})
	return nil
}

// Close ends the proxy with all its connections.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// Findings are all that there were until now, each once.
func (p *Proxy) Findings() []Finding {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.findings)
}

// Requests are the last ones, with their answers' status.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

func (p *Proxy) find(version, request string, what []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range what {
		if !p.seen[w] {
			p.seen[w] = true
			p.findings = append(p.findings, Finding{w, version, request})
		}
	}
}

func (p *Proxy) remember(request string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.requests) == remembered {
		p.requests = slices.Delete(p.requests, 0, 1)
	}
	p.requests = append(p.requests, request)
}

// keep is false when the proxy has been closed.
func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.open[c] = true
	}
	return !p.closed
}

func (p *Proxy) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

func (p *Proxy) dial() (*net.UnixConn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.Dial("unix", p.Socket)
	if err != nil && p.Start != nil {
		if err := p.Start(); err != nil {
			return nil, fmt.Errorf("start the daemon: %w", err)
		}
		conn, err = d.Dial("unix", p.Socket)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// serve hands on one connection.
func (p *Proxy) serve(client *net.UnixConn) {
	defer p.drop(client)
	daemon, err := p.dial()
	if err != nil {
		return // the client sees the connection closed
	}
	defer p.drop(daemon)
	if !p.keep(client, daemon) {
		return
	}
	asked, askedWriter := io.Pipe()
	answered, answeredWriter := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { p.listen(asked, answered) })
	wg.Go(func() { pass(daemon, client, askedWriter) })
	wg.Go(func() { pass(client, daemon, answeredWriter) })
	wg.Wait()
}

// pass hands on one direction to its end, and shows it to the one who reads
// along, first: an answer is never there before its question.
func pass(to, from *net.UnixConn, along *io.PipeWriter) {
	_, err := io.Copy(to, io.TeeReader(from, along))
	along.Close()
	if err != nil {
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}
