package machine

import (
	"context"
	"time"

	"sampan/proto"
)

// How the guest's clock is kept right. A laptop's sleep and a change of the
// host's clock show on the host itself, as a wall clock that has gone another
// way than the monotonic one. Drift, and a machine that was stopped and goes on,
// show only in the guest's answer. A call that such a machine has not answered
// yet is answered as soon as it goes on, so a stop of longer than clockPeriod is
// noticed at once.
const (
	clockTick   = time.Second     // between looks at the host's clocks
	clockPeriod = 5 * time.Second // between calls to the guest
	// clockJump is by how much the host's clocks may drift apart in a tick: NTP
	// slews by 0.5 ms a second.
	clockJump = 10 * time.Millisecond
	// clockRound is how long a call may take for its answer to be exact enough.
	clockRound = 20 * time.Millisecond
	// clockTries bounds the calls for a better answer, on a busy host.
	clockTries = 5
	// clockTolerance is what is left uncorrected.
	clockTolerance = time.Millisecond
)

// keepClock keeps the guest's clock right until its session ends.
func (m *Machine) keepClock(g *Guest) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // a call to a machine that is stopped waits
		select {
		case <-g.done:
		case <-ctx.Done():
		}
		cancel()
	}()
	tick := time.NewTicker(m.clockTick)
	defer tick.Stop()
	// What the boot set the clock by was as old as the call took to arrive, so the
	// first look is at once.
	for last, called := time.Now(), (time.Time{}); ; {
		now := time.Now()
		if jumped(last, now) || now.Sub(called) >= m.clockPeriod {
			if err := m.setClock(ctx, g); err != nil {
				if m.Running() == g { // not on its way to power-off
					m.cfg.Log.Warn("the guest's clock is not kept right", "error", err)
				}
				return
			}
			called = time.Now()
		}
		last = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// jumped says whether the wall clock has gone another way than the monotonic
// one, from a to b.
func jumped(a, b time.Time) bool {
	return drifted(time.Duration(b.UnixNano()-a.UnixNano()), b.Sub(a))
}

func drifted(wall, monotonic time.Duration) bool { return (wall - monotonic).Abs() > clockJump }

// setClock compares the guest's clock with ours, and corrects it by what the
// exactest answer says.
func (m *Machine) setClock(ctx context.Context, g *Guest) error {
	var offset, round time.Duration
	for try := 0; try < clockTries; try++ {
		begin := time.Now()
		resp, err := g.Clock(ctx, &proto.ClockRequest{})
		if err != nil {
			return err
		}
		end := time.Now()
		took := end.Sub(begin)
		if jumped(begin, end) || took > m.clockPeriod { // says nothing, and is no try
			try--
			continue
		}
		if try == 0 || took < round {
			round = took
			offset = time.Duration(begin.UnixNano()-resp.TimeUnixNano) + took/2
		}
		if round <= clockRound {
			break
		}
	}
	// The answer may have taken all the way there, or all the way back.
	if offset.Abs() <= round/2+clockTolerance {
		return nil
	}
	if offset.Abs() >= time.Second {
		m.cfg.Log.Info("the guest's clock is set", "by", offset)
	}
	_, err := g.Clock(ctx, &proto.ClockRequest{AdjustNano: int64(offset)})
	return err
}
