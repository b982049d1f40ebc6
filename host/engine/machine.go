package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sampan/host/machine"
	"sampan/proto"
)

// StopMachine ends every container in order and turns the machine off. Restart
// policies wait until it is started again; a container that its policy brings
// back is not marked as stopped by its user.
func (e *Engine) StopMachine(ctx context.Context) error {
	e.stopping.Store(true)
	var wg sync.WaitGroup
	for _, c := range e.all() {
		c.mu.Lock()
		c.stopRestart()
		r, cfg := c.run, c.rec.Config
		c.mu.Unlock()
		if r != nil {
			wg.Go(func() { e.end(ctx, c, r, cfg.StopSignal, cfg.StopTimeout) })
		}
	}
	wg.Wait()
	return e.machine.Stop(ctx)
}

// GrowDisk makes the machine's data disk size bytes long, from its next boot on.
func (e *Engine) GrowDisk(size int64) error {
	if err := e.machine.GrowDisk(size); err != nil {
		return invalid("%s", err)
	}
	return nil
}

// renewMachine turns off a machine whose data disk has failed: its next boot
// repairs that. Containers that run are not ended unasked.
func (e *Engine) renewMachine(ctx context.Context, why error) error {
	for _, c := range e.all() {
		c.mu.Lock()
		running := c.run != nil
		c.mu.Unlock()
		if running {
			return fmt.Errorf("%s: when there is space again, end the containers that run with \"sampan machine stop\"", message(why))
		}
	}
	e.log.Warn("the machine is turned off for its data disk to be repaired", "reason", message(why))
	return e.machine.Stop(ctx)
}

// end sends a run its stop signal, and SIGKILL when it takes too long. What is
// left then ends with the machine.
func (e *Engine) end(ctx context.Context, c *ctr, r *run, sig string, timeout *int) {
	patience := defaultStopTimeout
	if timeout != nil && *timeout >= 0 {
		patience = time.Duration(*timeout) * time.Second
	}
	number, err := signalNumber(sig, sigTERM)
	if err != nil {
		number = sigTERM
	}
	if _, err := e.thaw(ctx, c, r); err != nil {
		e.log.Debug("end container with the machine", "id", c.id, "error", err)
	}
	for _, step := range []struct {
		signal   uint32
		patience time.Duration
	}{{uint32(number), patience}, {sigKILL, time.Second}} {
		if _, err := r.guest.Signal(ctx, &proto.SignalRequest{Container: c.id, Signal: step.signal}); err != nil {
			e.log.Debug("end container with the machine", "id", c.id, "error", err)
		}
		select {
		case <-r.ended:
			return
		case <-time.After(step.patience):
		case <-ctx.Done():
			return
		}
	}
}

// OfMachine makes a Machine of the real one.
func OfMachine(m *machine.Machine) Machine { return realMachine{m} }

type realMachine struct{ *machine.Machine }

func (m realMachine) Guest(ctx context.Context) (Guest, error) {
	g, err := m.Machine.Guest(ctx)
	if err != nil {
		return nil, err // never a nil *machine.Guest in the interface
	}
	return g, nil
}

func (m realMachine) Running() Guest {
	if g := m.Machine.Running(); g != nil {
		return g
	}
	return nil
}
