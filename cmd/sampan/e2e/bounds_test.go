package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// 10,000 connections that ask nothing, a thousand that stop in the middle of a
// request, and one that is too large: the daemon answers others all the while,
// and holds no more than it must.
func TestBounds(t *testing.T) {
	h := newHome(t)
	h.sampan(t, "version")
	socket := filepath.Join(h.dir, "docker.sock")
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	dial := func(send string) {
		t.Helper()
		var c net.Conn
		eventually(t, 30*time.Second, "a connection", func() bool {
			var err error
			if c, err = net.Dial("unix", socket); err != nil && !errors.Is(err, syscall.EAGAIN) { // faster than it accepts
				t.Fatalf("connection %d: %v", len(conns), err)
			}
			return err == nil
		})
		conns = append(conns, c)
		// The daemon may have closed it already.
		c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = c.Write([]byte(send))
	}
	many := 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if room := int(limit.Cur) - 2_000; room < many {
		t.Logf("only %d descriptors", limit.Cur)
		many = max(room, 500)
	}
	for range many {
		dial("")
	}
	for i := range 500 {
		dial("GET /_ping HTTP/1.1\r\nHost:")
		dial(fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", 10+i))
	}
	eventually(t, 30*time.Second, "an answer", func() bool { return h.try(t, "", "sampan", "ps").code == 0 })
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.pid(t))); err != nil || len(fds) > 3000 {
		t.Errorf("the daemon has %d descriptors open, %v", len(fds), err)
	}
	body := `{"Image":"` + strings.Repeat("x", 8<<20) + `"}`
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Post("http://x/containers/create", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a large request: %s", res.Status)
	}
	h.sampan(t, "ps")
}
