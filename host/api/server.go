package api

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits bound what clients can make the daemon hold. Those that are 0 have a
// default.
type Limits struct {
	// Header and Body are how long a client may take to send a request's header
	// and its JSON. Streams (an image, an archive) take as long as they take.
	Header, Body time.Duration
	// Idle is how long a connection may wait for its next request.
	Idle time.Duration
	// Waiting is how many connections may wait for a request: with one more, the
	// one that has waited longest is closed.
	Waiting int
	// Open is how many connections may be there at all, without those that were
	// taken over (attach, exec): one more is closed at once.
	Open int
}

func (l Limits) withDefaults() Limits {
	set(&l.Header, 10*time.Second)
	set(&l.Body, 30*time.Second)
	set(&l.Idle, 10*time.Minute)
	set(&l.Open, 8192)
	set(&l.Waiting, min(512, l.Open/2))
	return l
}

func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// NewServer returns a server of handler that keeps to the limits.
func NewServer(handler http.Handler, l Limits, log *slog.Logger) *http.Server {
	l = l.withDefaults()
	d := &door{limits: l, open: map[net.Conn]*list.Element{}, waiting: list.New()}
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler.ServeHTTP(&deadlined{w, l.Body}, r)
		}),
		ReadHeaderTimeout: l.Header,
		IdleTimeout:       l.Idle,
		ConnState:         d.changed,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// deadlined tells decode how long it may take.
type deadlined struct {
	http.ResponseWriter
	body time.Duration
}

// Unwrap is for http.ResponseController.
func (d *deadlined) Unwrap() http.ResponseWriter { return d.ResponseWriter }

// hurry bounds the time in which the client sends the rest of the body, until
// the result is called. After an error it isn't: the server reads on, lest the
// client miss the answer.
func hurry(w http.ResponseWriter) (inTime func()) {
	for inner := w; ; {
		if d, ok := inner.(*deadlined); ok {
			c := http.NewResponseController(d.ResponseWriter)
			if c.SetReadDeadline(time.Now().Add(d.body)) != nil {
				break
			}
			return func() { c.SetReadDeadline(time.Time{}) }
		}
		u, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		inner = u.Unwrap()
	}
	return func() {}
}

// door knows the connections, and which of them wait for a request.
type door struct {
	limits Limits

	mu      sync.Mutex
	open    map[net.Conn]*list.Element // nil for one that is at work
	waiting *list.List                 // of net.Conn; who has waited longest is first
}

// changed is http.Server's ConnState.
func (d *door) changed(conn net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.open[conn]; e != nil {
		d.waiting.Remove(e)
	}
	switch state {
	case http.StateHijacked, http.StateClosed:
		delete(d.open, conn)
	case http.StateActive:
		d.open[conn] = nil
	case http.StateNew, http.StateIdle:
		d.open[conn] = d.waiting.PushBack(conn)
		if len(d.open) > d.limits.Open && state == http.StateNew {
			conn.Close() // the server sees that, and calls again
		} else if d.waiting.Len() > d.limits.Waiting {
			d.waiting.Remove(d.waiting.Front()).(net.Conn).Close()
		}
	}
}
