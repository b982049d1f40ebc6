package machine

import (
	"context"
	"sync"
	"testing"
	"time"

	"sampan/proto"
)

// clock is a guest's clock that is wrong and can stand still. nil is right.
type clock struct {
	mu     sync.Mutex
	off    time.Duration // from the host's
	paused chan struct{} // calls wait for it to be closed; nil: they don't
	calls  int
}

func (c *clock) call(ctx context.Context, adjust time.Duration) (*proto.ClockResponse, error) {
	if c == nil {
		return &proto.ClockResponse{TimeUnixNano: time.Now().UnixNano()}, nil
	}
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.off += adjust
	return &proto.ClockResponse{TimeUnixNano: time.Now().Add(c.off).UnixNano()}, nil
}

func (c *clock) offset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// within waits for the clock to be right.
func (c *clock) within(t *testing.T, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); c.offset().Abs() > 20*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %s the guest's clock is wrong by %s", limit, c.offset())
		}
	}
}

// A wrong clock is corrected, whichever way, also after the machine has stood
// still with a call on its way.
func TestClock(t *testing.T) {
	c := &clock{off: -time.Hour}
	m, _ := newMachine(t, guestWith(func() *agent { return &agent{version: proto.Version, clock: c} }, nil), nil)
	m.clockTick, m.clockPeriod = 10*time.Millisecond, 200*time.Millisecond
	mustGuest(t, m)
	c.within(t, 5*time.Second)
	c.mu.Lock()
	c.off = 42 * time.Second
	c.mu.Unlock()
	c.within(t, 5*time.Second)

	goOn := make(chan struct{})
	c.mu.Lock()
	c.paused = goOn
	c.mu.Unlock()
	time.Sleep(3 * m.clockPeriod) // long enough for a call to be waiting
	c.mu.Lock()
	c.off, c.paused = -3*m.clockPeriod, nil
	c.mu.Unlock()
	close(goOn)
	c.within(t, m.clockPeriod/2)
}

// A clock that is right is left alone.
func TestClockLeftAlone(t *testing.T) {
	c := &clock{off: time.Millisecond / 2}
	m, _ := newMachine(t, guestWith(func() *agent { return &agent{version: proto.Version, clock: c} }, nil), nil)
	m.clockTick, m.clockPeriod = time.Millisecond, time.Millisecond
	mustGuest(t, m)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		calls, off := c.calls, c.off
		c.mu.Unlock()
		if off != time.Millisecond/2 {
			t.Fatalf("changed to %s", off)
		}
		if calls >= 20 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d calls in 10 s", calls)
		}
	}
}

// The host's clock jumped: the monotonic part of a time goes on as if not.
func TestJumped(t *testing.T) {
	a := time.Now()
	if jumped(a, a.Add(time.Hour)) {
		t.Error("an hour of rest is no jump")
	}
	// Without its monotonic part the difference is that of the wall clock.
	for by, want := range map[time.Duration]bool{0: false, time.Millisecond: false, time.Second: true, -time.Second: true} {
		if got := drifted(time.Second+by, time.Second); got != want {
			t.Errorf("by %s: %v, want %v", by, got, want)
		}
	}
}
