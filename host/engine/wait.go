package engine

import (
	"context"

	"github.com/moby/moby/api/types/container"
)

// exitLost is the exit code of a container whose end nobody saw, as Docker has
// it after a crash of the host.
const exitLost = 255

// waiter waits for one end of a container.
type waiter struct {
	removed bool // for the removal, not for the next exit
	result  chan container.WaitResponse
}

// Waiting is a wait that has been registered: nothing that happens to the
// container from now on is missed.
type Waiting struct {
	c *ctr
	w *waiter
}

// WaitFor registers a wait for a container.
func (e *Engine) WaitFor(name string, cond container.WaitCondition) (*Waiting, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	w := &waiter{result: make(chan container.WaitResponse, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch cond {
	case "", container.WaitConditionNotRunning:
		if !c.active() {
			w.result <- c.exitLocked()
			return &Waiting{c, w}, nil
		}
	case container.WaitConditionNextExit:
	case container.WaitConditionRemoved:
		w.removed = true
	default:
		return nil, invalid("invalid condition: %q", cond)
	}
	c.waiters[w] = struct{}{}
	return &Waiting{c, w}, nil
}

// Result returns how the container ended. Cancelling ctx ends the wait.
func (w *Waiting) Result(ctx context.Context) (container.WaitResponse, error) {
	defer func() {
		w.c.mu.Lock()
		delete(w.c.waiters, w.w)
		w.c.mu.Unlock()
	}()
	select {
	case r := <-w.w.result:
		return r, nil
	case <-ctx.Done():
		return container.WaitResponse{}, ctx.Err()
	}
}

// active says whether a container runs or is about to be run again.
func (c *ctr) active() bool {
	return c.run != nil || c.rec.State.Status == container.StateRestarting
}

func (c *ctr) exitLocked() container.WaitResponse {
	r := container.WaitResponse{StatusCode: int64(c.rec.State.ExitCode)}
	if c.rec.State.Error != "" && c.rec.State.ExitCode == exitLost {
		r.Error = &container.WaitExitError{Message: c.rec.State.Error}
	}
	return r
}

// notify tells the waiters of an exit or, with removed, all of them; the caller
// holds mu.
func (c *ctr) notify(removed bool) {
	for w := range c.waiters {
		if w.removed && !removed {
			continue
		}
		w.result <- c.exitLocked() // buffered, and once only
		delete(c.waiters, w)
	}
}
