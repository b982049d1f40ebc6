package engine

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// Back-off of restart policies, as Docker has it: doubled for every end that
// came soon after the start.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	steadyRun    = 10 * time.Second
)

// comesBack says whether a container starts with the daemon.
func comesBack(rec *record) bool {
	if rec.State.Status == container.StateCreated {
		return false
	}
	p := &rec.HostConfig.RestartPolicy
	return p.IsAlways() || p.IsUnlessStopped() && !rec.Stopped
}

// restartDelay says whether the policy wants another run, and when. The caller
// holds mu.
func (e *Engine) restartDelay(c *ctr, r *run, end ending) (time.Duration, bool) {
	p := &c.rec.HostConfig.RestartPolicy
	if c.rec.Stopped || c.removing || e.stopping.Load() || e.ctx.Err() != nil {
		return 0, false
	}
	switch {
	case p.IsAlways(), p.IsUnlessStopped():
	case p.IsOnFailure() && end.code != 0:
		if p.MaximumRetryCount > 0 && c.rec.RestartCount >= p.MaximumRetryCount {
			return 0, false
		}
	default:
		return 0, false
	}
	if end.at.Sub(r.started) >= steadyRun {
		c.failures = 0
	}
	wait := min(firstBackoff<<min(c.failures, 20), maxBackoff)
	c.failures++
	return wait, true
}

// restartAfter waits and starts, unless ctx ends: somebody has stopped,
// started or removed the container.
func (e *Engine) restartAfter(ctx context.Context, cancel context.CancelFunc, c *ctr, wait time.Duration) {
	defer cancel()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return
	}
	c.mu.Lock()
	h := c.rec.HostConfig
	c.mu.Unlock()
	e.awaitOwners(ctx, h)
	err := e.start(ctx, c, false)
	if err != nil && ctx.Err() == nil && !errdefs.IsNotModified(err) {
		e.log.Error("restart container by its policy", "id", c.id, "error", err)
	}
}

// stopRestart ends a back-off; the caller holds mu.
func (c *ctr) stopRestart() {
	if c.cancelRestart == nil {
		return
	}
	c.cancelRestart()
	c.cancelRestart = nil
	if c.rec.State.Status == container.StateRestarting {
		c.rec.State.Status = container.StateExited
	}
}
