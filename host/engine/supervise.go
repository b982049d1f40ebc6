package engine

import (
	"context"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"sampan/proto"
)

// drainTimeout is how long an ended process's output may still be on its way
// before the end is told. What comes later is still logged and delivered.
const drainTimeout = 2 * time.Second

// lossTimeout is how long after its connection's end a machine may be noticed
// to have ended.
const lossTimeout = 5 * time.Second

// forgetTimeout bounds the guest's part of a container's end: it kills what is
// left in it, for 10 s at most, and unmounts.
const forgetTimeout = 30 * time.Second

// supervise sees a run through to its end.
func (e *Engine) supervise(c *ctr, r *run, log *logWriter) {
	if r.streams.stdin != nil && r.hub.stdin != nil {
		go func() { // ends when the process no longer reads or the hub is closed
			err := r.streams.feed(r.hub.stdin)
			r.hub.closeStdin()
			if err != nil {
				e.log.Debug("container's stdin ended", "id", c.id, "error", err)
			}
		}()
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		r.streams.pump(func(s Stream, p []byte) { r.hub.publish(log, s, p) })
	}()

	end := e.awaitExit(c, r)
	timer := time.NewTimer(drainTimeout)
	select {
	case <-drained:
	case <-timer.C:
	}
	timer.Stop()
	// Who sees the end of the output finds the container stopped.
	e.exited(c, r, end, func() {
		select {
		case <-drained:
			e.endStreams(r, log)
		default:
			release := e.machine.Hold() // it still has some of the output
			e.wg.Go(func() {
				defer release()
				<-drained
				e.endStreams(r, log)
			})
		}
	})
}

func (e *Engine) endStreams(r *run, log *logWriter) {
	r.streams.close()
	if log != nil {
		if err := log.close(); err != nil {
			e.log.Error("close container's log", "error", err)
		}
	}
	r.hub.close()
}

// ending is how a run has ended.
type ending struct {
	code int
	at   time.Time
	oom  bool
	lost error // the machine ended first
}

// awaitExit waits for the process, or for the machine.
func (e *Engine) awaitExit(c *ctr, r *run) ending {
	resp, err := r.guest.Wait(context.Background(), &proto.ProcessRequest{Container: c.id})
	if err == nil {
		return ending{code: int(resp.ExitCode), at: time.Unix(0, resp.ExitedUnixNano).UTC(), oom: resp.OomKilled}
	}
	select {
	case <-r.guest.Done():
		return ending{code: exitLost, at: time.Now().UTC(), lost: errMachineEnded}
	case <-time.After(lossTimeout): // the machine lives on: it was the call
	}
	e.log.Error("wait for container", "id", c.id, "error", err)
	return ending{code: exitLost, at: time.Now().UTC(), lost: err}
}

var errMachineEnded = errdefs.ErrUnavailable.WithMessage("the virtual machine ended while the container was running")

// exited turns a run's end into the container's state, calls endOutput, and
// does what has to follow: restart or removal.
func (e *Engine) exited(c *ctr, r *run, end ending, endOutput func()) {
	auto := c.rec.HostConfig.AutoRemove // not modified
	purged := false
	if end.lost == nil {
		// Unmounts; what is left after a failure goes with the machine. A writable
		// layer that goes with the container goes by the same call.
		ctx, cancel := context.WithTimeout(context.Background(), forgetTimeout)
		if _, err := r.guest.Remove(ctx, &proto.RemoveRequest{Id: c.id, Purge: auto}); err != nil {
			e.log.Warn("forget container in the guest", "id", c.id, "error", err)
		} else {
			purged = auto
		}
		cancel()
	}
	ends := r.endpoints()
	e.free(r) // not before the guest has let go of it
	c.mu.Lock()
	s := &c.rec.State
	s.Status, s.Pid, s.ExitCode, s.OOMKilled, s.FinishedAt = container.StateExited, 0, end.code, end.oom, end.at
	s.Health = endHealth(s.Health)
	if end.lost != nil {
		s.Error = end.lost.Error()
	}
	c.run, c.log = nil, nil
	c.hub = newHub(e.tmp(), c.rec.Config.OpenStdin)
	wait, again := e.restartDelay(c, r, end)
	if again {
		s.Status = container.StateRestarting
		c.rec.RestartCount++
	}
	if purged {
		c.rec.Started = false
	}
	e.trySave(c)
	c.notify(false)
	var ctx context.Context
	over := func() {}
	if again {
		ctx, c.cancelRestart = context.WithCancel(e.ctx)
		over = c.comeBack()
	}
	cancel := c.cancelRestart
	c.mu.Unlock()
	// Before anybody who waits for the end tells of something that followed it.
	r.signals.Lock()
	if end.oom {
		e.emitContainer(c, events.ActionOOM, nil)
	}
	e.emitContainer(c, events.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(end.code), "execDuration": strconv.Itoa(int(end.at.Sub(r.started).Seconds())),
	})
	r.signals.Unlock()
	for _, ep := range ends {
		e.emitNetwork(&ep.net.networkRecord, events.ActionDisconnect, map[string]string{"container": c.id})
	}
	e.emitUnmounts(c)
	close(r.ended)
	endOutput()
	switch {
	case again:
		release := e.machine.Hold()
		e.wg.Go(func() {
			defer release()
			defer over()
			e.restartAfter(ctx, cancel, c, wait)
		})
	case auto:
		if err := e.Remove(context.Background(), c.id, RemoveOptions{Volumes: true}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			e.log.Error("remove container", "id", c.id, "error", err)
		}
	}
}
