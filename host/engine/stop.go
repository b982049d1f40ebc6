package engine

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// endsByDefault are the signals by which people and programs ask for an end.
var endsByDefault = map[int]bool{1: true, 2: true, 3: true, sigKILL: true, sigTERM: true}

const (
	defaultStopTimeout = 10 * time.Second
	sigTERM, sigKILL   = 15, 9
	// killTimeout is how long a container may take to go after SIGKILL.
	killTimeout = 30 * time.Second
)

// Stop ends a container: its stop signal, and after a while SIGKILL. timeout is
// in seconds, nil: the container's own; negative: never SIGKILL. The empty sig
// is the container's own.
func (e *Engine) Stop(ctx context.Context, name, sig string, timeout *int) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	return e.stop(ctx, c, sig, timeout)
}

func (e *Engine) stop(ctx context.Context, c *ctr, sig string, timeout *int) error {
	c.mu.Lock()
	if c.callOff != nil {
		c.callOff()
		c.mu.Unlock()
		return nil
	}
	wasActive := c.active()
	r, cfg := c.run, c.rec.Config
	if wasActive {
		c.rec.Stopped = true
		c.stopRestart()
		e.trySave(c)
		if r == nil { // was waiting to be restarted
			c.notify(false)
		}
	}
	c.mu.Unlock()
	if !wasActive {
		return notModified("container %s is not running", c.id)
	}
	if r == nil {
		e.emitContainer(c, events.ActionStop, nil)
		return nil
	}
	if sig == "" {
		sig = cfg.StopSignal
	}
	num, err := signalNumber(sig, sigTERM)
	if err != nil {
		return err
	}
	wait := defaultStopTimeout
	if timeout == nil {
		timeout = cfg.StopTimeout
	}
	if timeout != nil {
		wait = time.Duration(*timeout) * time.Second
	}
	// A container that does not get the signal is killed below.
	if err := e.signal(ctx, c, r, num); err != nil {
		e.log.Warn("stop container", "id", c.id, "error", err)
	}
	if _, err := e.thaw(ctx, c, r); err != nil { // or it would not hear
		e.log.Warn("stop container", "id", c.id, "error", err)
	}
	if err := e.awaitEnd(ctx, c, r, wait); err != nil {
		return err
	}
	e.emitContainer(c, events.ActionStop, nil)
	return nil
}

// awaitEnd waits for a run's end, and kills it after a while.
func (e *Engine) awaitEnd(ctx context.Context, c *ctr, r *run, wait time.Duration) error {
	var late <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late:
	}
	if err := e.signal(ctx, c, r, sigKILL); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("container %s did not end %s after SIGKILL", c.id, killTimeout)
	}
}

func (e *Engine) signal(ctx context.Context, c *ctr, r *run, num int) error {
	r.signals.Lock()
	defer r.signals.Unlock()
	_, err := r.guest.Signal(ctx, &proto.SignalRequest{Container: c.id, Signal: uint32(num)})
	switch status.Code(err) {
	case codes.NotFound, codes.FailedPrecondition:
		return nil // the guest has seen its end, of which the host is about to hear
	}
	if err != nil {
		select {
		case <-r.ended: // it was already gone
			return nil
		default:
		}
		return err
	}
	e.emitContainer(c, events.ActionKill, map[string]string{"signal": strconv.Itoa(num)})
	return nil
}

// Kill sends a signal, by name or number; the empty one is SIGKILL.
func (e *Engine) Kill(ctx context.Context, name, sig string) error {
	c, err := e.find(name)
	if errdefs.IsNotFound(err) {
		return notFound("cannot kill container: %s: %s", name, err)
	}
	if err != nil {
		return err
	}
	num, err := signalNumber(sig, sigKILL)
	if err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	if r == nil && c.callOff != nil && endsByDefault[num] {
		c.callOff()
		c.mu.Unlock()
		return nil
	}
	if r == nil {
		restarting := c.rec.State.Status == container.StateRestarting
		c.mu.Unlock()
		if restarting && num == sigKILL {
			return e.stop(ctx, c, "", nil)
		}
		return conflict("cannot kill container: %s: container %s is not running", name, c.id)
	}
	// A signal that is meant to end the container ends its policy, too.
	stopNum, err := signalNumber(c.rec.Config.StopSignal, sigTERM)
	ends := err == nil && (num == sigKILL || num == stopNum)
	if ends {
		c.rec.Stopped = true
		e.trySave(c)
	}
	c.mu.Unlock()
	if err := e.signal(ctx, c, r, num); err != nil {
		return fmt.Errorf("cannot kill container: %s: %s", name, message(err))
	}
	if ends && num != sigKILL { // and a pause, as with Docker; SIGKILL needs no thaw
		if _, err := e.thaw(ctx, c, r); err != nil {
			e.log.Warn("kill container", "id", c.id, "error", err)
		}
	}
	if num != sigKILL {
		return nil
	}
	return e.awaitEnd(ctx, c, r, killTimeout)
}

// Cycle stops a container if it runs, and starts it.
func (e *Engine) Cycle(ctx context.Context, name, sig string, timeout *int) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if _, err := signalNumber(sig, sigTERM); err != nil {
		return err
	}
	c.mu.Lock()
	active := c.active()
	c.mu.Unlock()
	if active {
		if err := e.stop(ctx, c, sig, timeout); err != nil && ctx.Err() != nil {
			return err
		}
	}
	// Somebody else may have started it meanwhile: it runs, which was wanted.
	if err := e.start(ctx, c, true); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	e.emitContainer(c, events.ActionRestart, nil)
	return nil
}

// signalNumber reads a Linux signal by name or number. The table is the
// guest's, not the host's.
func signalNumber(s string, empty int) (int, error) {
	if s == "" {
		return empty, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n <= 0 || n > 64 {
			return 0, invalid("invalid signal: %s", s)
		}
		return n, nil
	}
	if n, ok := linuxSignals[strings.TrimPrefix(strings.ToUpper(s), "SIG")]; ok {
		return n, nil
	}
	return 0, invalid("invalid signal: %s", s)
}
