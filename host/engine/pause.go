package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// Pause stops a container's processes where they are.
func (e *Engine) Pause(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	r, err := c.running()
	if err != nil {
		return err
	}
	r.freezing.Lock()
	defer r.freezing.Unlock()
	if c.paused() {
		return conflict("Container %s is already paused", c.id)
	}
	if _, err := r.guest.Freeze(ctx, &proto.FreezeRequest{Container: c.id, Frozen: true}); err != nil {
		if r.endsWithin(ctx, lossTimeout, err) {
			return conflict("Container %s is not running", c.id)
		}
		return fmt.Errorf("cannot pause container %s: %s", c.id, message(err))
	}
	e.setPaused(c, r, container.StatePaused, events.ActionPause)
	return nil
}

// endsWithin tells whether a run has come to its end, which the guest's refusal
// of it may precede.
func (r *run) endsWithin(ctx context.Context, limit time.Duration, refusal error) bool {
	if code := status.Code(refusal); code != codes.NotFound && code != codes.FailedPrecondition {
		limit = 0
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// Unpause lets a container's processes go on.
func (e *Engine) Unpause(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return conflict("Container %s is not paused", c.id)
	}
	done, err := e.thaw(ctx, c, r)
	if err != nil {
		return fmt.Errorf("cannot unpause container %s: %s", c.id, message(err))
	}
	if !done {
		return conflict("Container %s is not paused", c.id)
	}
	return nil
}

// thaw ends a pause; done is false when there was none.
func (e *Engine) thaw(ctx context.Context, c *ctr, r *run) (done bool, err error) {
	r.freezing.Lock()
	defer r.freezing.Unlock()
	if !c.paused() {
		return false, nil
	}
	if _, err := r.guest.Freeze(ctx, &proto.FreezeRequest{Container: c.id}); err != nil {
		select {
		case <-r.ended:
			return true, nil
		default:
		}
		return false, err
	}
	e.setPaused(c, r, container.StateRunning, events.ActionUnPause)
	return true, nil
}

func (e *Engine) setPaused(c *ctr, r *run, status container.ContainerState, a events.Action) {
	c.mu.Lock()
	still := c.run == r // it may have ended meanwhile
	if still {
		c.rec.State.Status = status
		e.trySave(c)
	}
	c.mu.Unlock()
	if still {
		e.emitContainer(c, a, nil)
	}
}

func (c *ctr) paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run != nil && c.rec.State.Status == container.StatePaused
}

// running is the container's run, or says why there is none.
func (c *ctr) running() (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run != nil:
		return c.run, nil
	case c.rec.State.Status == container.StateRestarting:
		return nil, conflict("Container %s is restarting, wait until the container is running", c.id)
	}
	return nil, conflict("Container %s is not running", c.id)
}

// Update changes a container's limits and its restart policy, at once when it
// runs. What is zero stays as it is.
func (e *Engine) Update(ctx context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error) {
	none := container.UpdateResponse{Warnings: []string{}}
	c, err := e.find(name)
	if err != nil {
		return none, err
	}
	select { // no start in between
	case c.op <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { <-c.op }()
	c.mu.Lock()
	old, r := c.rec.HostConfig, c.run
	removing := c.removing
	c.mu.Unlock()
	if removing {
		return none, conflict("Container is marked for removal and cannot be \"update\".")
	}
	h := *old
	warnings := discard(&u.Resources)
	if err := merge(&h, u); err != nil {
		if errdefs.IsConflict(err) {
			return none, conflict("Cannot update container %s: %s", c.id, err)
		}
		return none, err
	}
	if err := e.checkCPUs(&h.Resources); err != nil {
		return none, err
	}
	if r != nil {
		if err := e.limit(ctx, c, r, &h); err != nil {
			return none, err
		}
	}
	c.mu.Lock()
	c.rec.HostConfig = &h
	err = e.save(c)
	if err != nil {
		c.rec.HostConfig = old
	}
	c.mu.Unlock()
	if err != nil {
		return none, err
	}
	e.emitContainer(c, events.ActionUpdate, nil)
	return container.UpdateResponse{Warnings: warnings}, nil
}

func (e *Engine) limit(ctx context.Context, c *ctr, r *run, h *container.HostConfig) error {
	res, err := resources(h)
	if err != nil {
		return err
	}
	res.Devices = nil // which can't be changed
	text, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if _, err := r.guest.Limit(ctx, &proto.LimitRequest{Container: c.id, Resources: text}); err != nil {
		return fmt.Errorf("Cannot update container %s: %s", c.id, message(err))
	}
	return nil
}

// merge puts what u sets into h, and checks the whole.
func merge(h *container.HostConfig, u container.UpdateConfig) error {
	r := &h.Resources
	switch {
	case u.NanoCPUs > 0 && (r.CPUPeriod > 0 || u.CPUPeriod > 0):
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case u.NanoCPUs > 0 && (r.CPUQuota > 0 || u.CPUQuota > 0):
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case u.CPUPeriod > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case u.CPUQuota > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case u.Memory > 0 && u.MemorySwap == 0 && r.MemorySwap > 0 && u.Memory > r.MemorySwap:
		return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	for _, n := range []struct {
		to   *int64
		from int64
	}{
		{&r.CPUShares, u.CPUShares}, {&r.NanoCPUs, u.NanoCPUs}, {&r.CPUPeriod, u.CPUPeriod}, {&r.CPUQuota, u.CPUQuota},
		{&r.Memory, u.Memory}, {&r.MemorySwap, u.MemorySwap}, {&r.MemoryReservation, u.MemoryReservation},
	} {
		if n.from != 0 {
			*n.to = n.from
		}
	}
	if u.CpusetCpus != "" {
		r.CpusetCpus = u.CpusetCpus
	}
	if u.CpusetMems != "" {
		r.CpusetMems = u.CpusetMems
	}
	if u.PidsLimit != nil {
		limit := *u.PidsLimit
		r.PidsLimit = &limit
	}
	if err := refuseResources(&u.Resources); err != nil {
		return err
	}
	if err := refuse([]named{
		{"HostConfig.Devices", len(u.Devices) > 0},
		{"HostConfig.DeviceCgroupRules", len(u.DeviceCgroupRules) > 0},
		{"HostConfig.Ulimits", len(u.Ulimits) > 0},
	}); err != nil {
		return err
	}
	if u.RestartPolicy.Name != "" {
		if h.AutoRemove && !u.RestartPolicy.IsNone() {
			return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
			return invalid("%s", err)
		}
		h.RestartPolicy = u.RestartPolicy
	}
	return checkResources(r)
}
