package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/moby/client"
)

// connection is a client of the daemon in one home.
type connection struct {
	// restart starts the daemon; nil for commands that never do.
	restart func(context.Context) error

	home   string
	socket string
	api    *client.Client
	plain  *http.Client // for the endpoints that are ours

	mu   sync.Mutex
	open net.Conn // what found out that the daemon is there
}

func (c *connection) close() {
	_ = c.api.Close() // only idle connections
	if c.open != nil {
		_ = c.open.Close()
	}
}

// home is SAMPAN_HOME, absolute.
func (a *app) home() (string, error) {
	dir := a.getenv("SAMPAN_HOME")
	if dir == "" {
		user := a.getenv("HOME")
		if user == "" {
			return "", errors.New("neither SAMPAN_HOME nor HOME is set")
		}
		dir = filepath.Join(user, ".sampan")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("SAMPAN_HOME: %w", err)
	}
	// sun_path has 104 bytes on macOS, 108 on Linux; one home works on both.
	if socket := filepath.Join(dir, "docker.sock"); len(socket) > 103 {
		return "", fmt.Errorf("SAMPAN_HOME: %s has %d bytes, a socket's path at most 103: choose a shorter one", socket, len(socket))
	}
	return dir, nil
}

// docker returns the API client, after starting the daemon if nobody serves
// the socket.
func (a *app) docker(ctx context.Context) (*client.Client, error) {
	c, err := a.connect(ctx, true)
	if err != nil {
		return nil, err
	}
	return c.api, nil
}

// errNoDaemon: nobody serves the socket, and nobody was to be started.
var errNoDaemon = errors.New("sampand is not running")

// connect makes a.conn. Without start, no daemon is errNoDaemon.
func (a *app) connect(ctx context.Context, start bool) (*connection, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	c := &connection{home: home, socket: filepath.Join(home, "docker.sock")}
	c.open, err = c.dialSocket(ctx)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		if !start {
			return nil, errNoDaemon
		}
		if err := a.startDaemon(ctx, home); err != nil {
			return nil, err
		}
		c.open, err = c.dialSocket(ctx)
	}
	if err != nil {
		return nil, &daemonError{"cannot connect to sampand in SAMPAN_HOME " + home + ": " + err.Error()}
	}
	if start {
		c.restart = func(ctx context.Context) error { return a.startDaemon(ctx, home) }
	}
	c.plain = &http.Client{Transport: &http.Transport{DialContext: c.dial}}
	c.api, err = client.New(
		client.WithHost("unix://"+c.socket),
		client.WithDialContext(c.dial),
		client.WithUserAgent("sampan/"+a.build),
		client.WithHTTPResponseHook(a.compareBuilds),
	)
	if err != nil {
		_ = c.open.Close()
		return nil, err
	}
	a.conn = c
	return c, nil
}

func (c *connection) dialSocket(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket)
}

// dial hands out the connection that is open already, then new ones.
func (c *connection) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	if open != nil {
		return open, nil
	}
	conn, err := c.dialSocket(ctx)
	if c.restart != nil && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)) {
		// The daemon that answered before was ending.
		if err := c.restart(ctx); err != nil {
			return nil, err
		}
		conn, err = c.dialSocket(ctx)
	}
	if err != nil {
		return nil, &daemonError{"cannot connect to sampand: " + err.Error()}
	}
	return conn, nil
}

// compareBuilds sees every response of the daemon.
func (a *app) compareBuilds(resp *http.Response) {
	if !strings.HasSuffix(resp.Request.URL.Path, "/_ping") {
		return
	}
	if other := resp.Header.Get("Sampan-Build"); other != "" && other != a.build {
		fmt.Fprintf(a.err, "WARNING: sampand is of build %s, sampan of %s: end it with 'sampan machine stop --daemon', and the next command starts the new one\n", other, a.build)
	}
}

// responseError reads the daemon's message, in the client library's words.
func responseError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	var message struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &message) != nil || message.Message == "" {
		message.Message = strings.TrimSpace(string(body))
	}
	if message.Message == "" {
		message.Message = resp.Status
	}
	return fmt.Errorf("Error response from daemon: %s", message.Message) //nolint:staticcheck // Docker's words
}

// executable is the path of this program, with symbolic links followed.
func executable() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(exe)
}
