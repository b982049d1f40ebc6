package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// Health checks run in the guest (its package health); the host knows what
// Docker makes of a request, and remembers the results.

// Docker's defaults of a health check.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	// keptProbes is how many results inspect shows.
	keptProbes = 5
)

// checkHealth refuses what Docker does.
func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"Interval", h.Interval}, {"Timeout", h.Timeout},
		{"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval},
	} {
		if d.value != 0 && d.value < time.Millisecond {
			return invalid("%s in Healthcheck cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "NONE":
	case "CMD", "CMD-SHELL":
		if len(h.Test) < 2 {
			return invalid("Healthcheck has no command")
		}
	default:
		return invalid("unknown type of Healthcheck %q (want CMD, CMD-SHELL or NONE)", h.Test[0])
	}
	return nil
}

// mergeHealth fills what the request leaves open from the image's.
func mergeHealth(own, img *container.HealthConfig) *container.HealthConfig {
	switch {
	case img == nil:
		return own
	case own == nil:
		return img
	}
	h := *own
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	for _, d := range []struct {
		own *time.Duration
		img time.Duration
	}{
		{&h.Interval, img.Interval}, {&h.Timeout, img.Timeout},
		{&h.StartPeriod, img.StartPeriod}, {&h.StartInterval, img.StartInterval},
	} {
		if *d.own == 0 {
			*d.own = d.img
		}
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
	return &h
}

// hasHealth says whether a container is checked.
func hasHealth(c *container.Config) bool {
	h := c.Healthcheck
	return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
}

// healthRequest is what the guest needs to check a container; nil for none.
func healthRequest(rec *record, env []string, arch string) (*proto.HealthCheck, error) {
	if !hasHealth(rec.Config) {
		return nil, nil
	}
	h := rec.Config.Healthcheck
	cmd := h.Test[1:]
	if h.Test[0] == "CMD-SHELL" {
		shell := rec.Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = append(append([]string{}, shell...), cmd...)
	}
	p, err := execProcess(container.ExecCreateRequest{Cmd: cmd}, withVariables(rec.Config, env), rec.HostConfig, arch)
	if err != nil {
		return nil, err
	}
	out := &proto.HealthCheck{
		IntervalNano:      int64(cmp.Or(h.Interval, healthInterval)),
		TimeoutNano:       int64(cmp.Or(h.Timeout, healthTimeout)),
		StartPeriodNano:   int64(h.StartPeriod),
		StartIntervalNano: int64(cmp.Or(h.StartInterval, healthStartInterval)),
		Retries:           uint32(cmp.Or(h.Retries, healthRetries)),
	}
	out.Process, err = json.Marshal(p)
	return out, err
}

// startHealth is the health of a container that has just been started; the
// results of earlier runs stay.
func startHealth(c *container.Config, before *container.Health) *container.Health {
	if !hasHealth(c) {
		return nil
	}
	h := &container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}
	if before != nil {
		h.Log = before.Log
	}
	return h
}

// endHealth is that of one that has ended: unhealthy, as Docker has it.
func endHealth(h *container.Health) *container.Health {
	if h == nil {
		return nil
	}
	over := *h
	over.Status = container.Unhealthy
	return &over
}

// watchHealth takes the results of a run's health check until its end.
func (e *Engine) watchHealth(c *ctr, r *run) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-r.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for after := uint64(0); ; {
		resp, err := r.guest.Health(ctx, &proto.HealthRequest{Container: c.id, After: after})
		if err != nil {
			if code := status.Code(err); ctx.Err() == nil && code != codes.FailedPrecondition && code != codes.NotFound {
				e.log.Warn("health of container", "id", c.id, "error", err)
			}
			return
		}
		for _, res := range resp.Results {
			after = res.Number
			e.addHealth(c, r, res)
		}
	}
}

// addHealth notes a result, and tells when it changes the container's health.
func (e *Engine) addHealth(c *ctr, r *run, res *proto.HealthResult) {
	c.mu.Lock()
	old := c.rec.State.Health
	if c.run != r || old == nil {
		c.mu.Unlock()
		return
	}
	h := &container.Health{Status: container.HealthStatus(res.Status), FailingStreak: int(res.FailingStreak)}
	h.Log = append(h.Log, old.Log[max(0, len(old.Log)-keptProbes+1):]...)
	h.Log = append(h.Log, &container.HealthcheckResult{
		Start: time.Unix(0, res.StartUnixNano).UTC(), End: time.Unix(0, res.EndUnixNano).UTC(),
		ExitCode: int(res.ExitCode), Output: res.Output,
	})
	c.rec.State.Health = h
	c.mu.Unlock()
	if h.Status != old.Status {
		e.emitContainer(c, events.ActionHealthStatus+": "+events.Action(h.Status), nil)
	}
}

// healthOf is a container's health in a word.
func healthOf(h *container.Health) container.HealthStatus {
	if h == nil {
		return container.NoHealthcheck
	}
	return h.Status
}
