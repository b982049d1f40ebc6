package api_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sampan/host/api"
)

// bounded serves handler with limits; dial connects to it.
func bounded(t *testing.T, l api.Limits, handler http.HandlerFunc) (dial func(send string) net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sampan-api-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(handler, l, slog.New(slog.DiscardHandler))
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-served })
	return func(send string) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		if send != "" {
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
		}
		return conn
	}
}

const get = "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"

// ask sends a request and reads the answer's first line.
func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	if _, err := io.WriteString(conn, get); err != nil {
		return err.Error()
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	io.Copy(io.Discard, res.Body)
	return res.Status
}

func ended(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection was not closed: %v", err)
	}
}

// A client that does not finish a request is not waited for.
func TestUnfinishedRequest(t *testing.T) {
	dial := bounded(t, api.Limits{Header: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {})
	ended(t, dial(""))
	ended(t, dial("GET /_ping HTTP/1.1\r\nHost:"))

	d := start(t)
	half := "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
	handler := api.New(api.Config{Engine: d.engine, Images: d.images, Build: "test", Home: d.home, Log: slog.New(slog.DiscardHandler)})
	dial = bounded(t, api.Limits{Body: 50 * time.Millisecond}, handler.ServeHTTP)
	conn := dial(half)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusBadRequest {
		t.Errorf("half a body: %v, %v", res, err)
	}
	ended(t, conn)
	// What takes its time to answer is not cut off by that.
	if got := ask(t, dial("")); got != "200 OK" {
		t.Errorf("the next request: %s", got)
	}
}

// Of many idle connections those go that have waited longest; those at work and
// those taken over stay.
func TestIdleConnections(t *testing.T) {
	release, began := make(chan struct{}), make(chan struct{}, 2)
	dial := bounded(t, api.Limits{Waiting: 10}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			began <- struct{}{}
			<-release
		case "/hijack":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			began <- struct{}{}
			go func() { defer conn.Close(); <-release; io.WriteString(conn, "still here") }()
		}
	})
	slow := dial("GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	<-began
	taken := dial("GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n")
	<-began
	var idle []net.Conn
	for i := range 200 {
		c := dial("")
		if i%2 == 0 { // has asked before
			if got := ask(t, c); got != "200 OK" {
				t.Fatalf("connection %d: %s", i, got)
			}
		}
		idle = append(idle, c)
	}
	for _, c := range idle[:180] {
		ended(t, c)
	}
	if got := ask(t, dial("")); got != "200 OK" {
		t.Errorf("a new connection: %s", got)
	}
	close(release)
	for conn, want := range map[net.Conn]string{slow: "200 OK", taken: "still here"} {
		if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
}

// More connections than may be open are refused, and only they.
func TestOpenConnections(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, 1)
	dial := bounded(t, api.Limits{Open: 8}, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-release
		fmt.Fprint(w, "done")
	})
	var busy []net.Conn
	for range 8 {
		busy = append(busy, dial("GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		<-began
	}
	ended(t, dial(""))
	close(release)
	for _, c := range busy {
		if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "done") {
			t.Errorf("%q, %v", b, err)
		}
	}
}
