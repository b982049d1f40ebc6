package agent

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

// stepFrom is from where on the clock is set at once. Anything less is made up
// for gradually, 0.5 ms a second (adjtime(3)), so that time does not go back for
// a trifle.
const stepFrom = 20 * time.Millisecond

// Modes of adjtimex (linux/timex.h).
const (
	adjSetOffset  = 0x0100 // add an offset at once, in seconds and microseconds
	adjSingleShot = 0x8001 // make up for an offset in microseconds gradually
)

// Clock implements proto.AgentService.
func (s *Service) Clock(_ context.Context, req *proto.ClockRequest) (*proto.ClockResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if req.AdjustNano != 0 {
		if err := adjustClock(time.Duration(req.AdjustNano)); err != nil {
			return nil, failed("adjust clock", err)
		}
	}
	return &proto.ClockResponse{TimeUnixNano: time.Now().UnixNano()}, nil
}

// setClock sets the clock: what the machine began with is the host's guess.
func setClock(unixNano int64) error {
	ts := unix.NsecToTimespec(unixNano)
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// adjustClock moves the clock by an offset (adjtimex(2)).
func adjustClock(by time.Duration) error {
	t := unix.Timex{Modes: adjSingleShot, Offset: by.Microseconds()}
	if by.Abs() >= stepFrom {
		t = unix.Timex{Modes: adjSetOffset, Time: unix.NsecToTimeval(int64(by))}
	}
	_, err := unix.Adjtimex(&t)
	return err
}
