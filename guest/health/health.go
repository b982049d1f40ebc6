// Package health runs a container's health check where the container is: a
// command, again and again, until the container ends.
//
//	starting ──probe succeeds──▶ healthy ◀──probe succeeds──┐
//	    │                           │                       │
//	    └──── Retries failures ─────┴──▶ unhealthy ─────────┘
//
// Failures within the start period don't count while no probe has succeeded.
package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Statuses of a container, in Docker's words.
const (
	Starting  = "starting"
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

const (
	// kept is how many results wait for who asks for them.
	kept = 8
	// maxOutput is how much of a probe's output is kept, in bytes.
	maxOutput = 4096
	// failedProbe is the exit code of a probe that did not end by itself.
	failedProbe = -1
)

// Check says when to probe. All fields are required but those marked optional.
type Check struct {
	Interval time.Duration // between the end of a probe and the next
	Timeout  time.Duration // of a probe
	// StartPeriod is the time in which failures don't count and probes follow
	// each other after StartInterval. Optional.
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       uint32 // failures in a row that make a container unhealthy
}

// Validate says what is wrong with a check.
func (c Check) Validate() error {
	if c.Interval <= 0 || c.Timeout <= 0 || c.StartInterval <= 0 || c.StartPeriod < 0 || c.Retries == 0 {
		return fmt.Errorf("health check: incomplete: %+v", c)
	}
	return nil
}

// Probe runs the command once and returns its exit code. When ctx ends it kills
// the command. An error says why there is no exit code.
type Probe func(ctx context.Context, out io.Writer) (code int, err error)

// Result of a probe.
type Result struct {
	Number     uint64 // of the probe, from 1
	Start, End time.Time
	ExitCode   int // -1: it did not run, or not to its end
	Output     string
	// Status and Streak (of failures) are the container's after this probe.
	Status string
	Streak uint32
}

// Monitor runs one container's check.
type Monitor struct {
	check  Check
	probe  Probe
	cancel context.CancelFunc
	ended  chan struct{}

	mu      sync.Mutex
	results []Result // the last ones
	news    chan struct{}
	status  string
	streak  uint32
	resumed chan struct{} // closed unless suspended
}

// Start runs a check until Stop.
func Start(check Check, probe Probe) *Monitor {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Monitor{
		check: check, probe: probe, cancel: cancel, ended: make(chan struct{}),
		news: make(chan struct{}), status: Starting, resumed: make(chan struct{}),
	}
	close(m.resumed)
	go m.run(ctx)
	return m
}

// Stop ends the check and waits for a probe that is under way. Idempotent.
func (m *Monitor) Stop() {
	m.cancel()
	<-m.ended
}

// Suspend keeps further probes from starting, until Resume. Idempotent.
func (m *Monitor) Suspend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.resumed:
		m.resumed = make(chan struct{})
	default:
	}
}

// Resume lets probes start again. Idempotent.
func (m *Monitor) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.resumed:
	default:
		close(m.resumed)
	}
}

// Next waits for results after number after, and returns those that are still
// kept. The error is io.EOF when there will be no more.
func (m *Monitor) Next(ctx context.Context, after uint64) ([]Result, error) {
	for {
		// Before the results are looked at: none is missed.
		over := false
		select {
		case <-m.ended:
			over = true
		default:
		}
		m.mu.Lock()
		news := m.news
		var out []Result
		for _, r := range m.results {
			if r.Number > after {
				out = append(out, r)
			}
		}
		m.mu.Unlock()
		switch {
		case len(out) > 0:
			return out, nil
		case over:
			return nil, io.EOF
		}
		select {
		case <-news:
		case <-m.ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *Monitor) run(ctx context.Context) {
	defer close(m.ended)
	began := time.Now()
	timer := time.NewTimer(m.pause(began))
	defer timer.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		resumed := m.resumed
		m.mu.Unlock()
		select {
		case <-resumed:
		case <-ctx.Done():
			return
		}
		r := m.once(ctx)
		if ctx.Err() != nil {
			return // its end is the container's
		}
		r.Number = n
		m.add(r, began)
		timer.Reset(m.pause(began))
	}
}

// pause is how long to wait for the next probe.
func (m *Monitor) pause(began time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status == Starting && time.Since(began) < m.check.StartPeriod {
		return m.check.StartInterval
	}
	return m.check.Interval
}

// once runs a probe.
func (m *Monitor) once(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, m.check.Timeout)
	defer cancel()
	var out output
	r := Result{Start: time.Now()}
	code, err := m.probe(ctx, &out)
	r.End, r.ExitCode, r.Output = time.Now(), code, out.String()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		text := fmt.Sprintf("Health check exceeded timeout (%v)", m.check.Timeout)
		if r.Output != "" {
			text += ": " + r.Output
		}
		r.ExitCode, r.Output = failedProbe, text
	case err != nil:
		r.ExitCode, r.Output = failedProbe, err.Error()
	}
	return r
}

// add makes a probe's result the container's.
func (m *Monitor) add(r Result, began time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.ExitCode == 0:
		m.status, m.streak = Healthy, 0
	case m.status == Starting && r.Start.Sub(began) < m.check.StartPeriod:
	default:
		m.streak++
		if m.streak >= m.check.Retries {
			m.status = Unhealthy
		}
	}
	r.Status, r.Streak = m.status, m.streak
	if len(m.results) == kept {
		m.results = m.results[1:]
	}
	m.results = append(m.results, r)
	close(m.news)
	m.news = make(chan struct{})
}

// output keeps the beginning of what is written to it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	cut bool
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(p), maxOutput-o.buf.Len())
	o.buf.Write(p[:n])
	o.cut = o.cut || n < len(p)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return o.buf.String() + "..."
	}
	return o.buf.String()
}
