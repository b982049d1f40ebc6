package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/health"
	"sampan/guest/runtime"
	"sampan/proto"
)

// probeDrain is how long an ended probe's output may be held open by what it
// has left behind.
const probeDrain = time.Second

// healthCheck reads the request's check; nil when it has none.
func healthCheck(req *proto.HealthCheck) (*health.Check, *specs.Process, error) {
	if req == nil {
		return nil, nil, nil
	}
	c := &health.Check{
		Interval: time.Duration(req.IntervalNano), Timeout: time.Duration(req.TimeoutNano),
		StartPeriod: time.Duration(req.StartPeriodNano), StartInterval: time.Duration(req.StartIntervalNano),
		Retries: req.Retries,
	}
	if err := c.Validate(); err != nil {
		return nil, nil, errorf(codes.InvalidArgument, "%v", err)
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(req.Process, spec); err != nil {
		return nil, nil, errorf(codes.InvalidArgument, "process of the health check: %v", err)
	}
	return c, spec, nil
}

// probe runs spec in a container.
func probe(ctr *runtime.Container, spec *specs.Process) health.Probe {
	return func(ctx context.Context, out io.Writer) (int, error) {
		r, w, err := pipe(false)
		if err != nil {
			return 0, err
		}
		defer r.Close()
		p, err := ctr.Exec(ctx, spec, runtime.Stdio{Stdout: w, Stderr: w})
		w.Close()
		if err != nil {
			return 0, err
		}
		if err := p.Start(); err != nil {
			return 0, err
		}
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.Copy(out, r) // ends with r, or with its deadline
		}()
		// However it ends, it is waited for: its kill is certain.
		stop := context.AfterFunc(ctx, func() { p.Signal(int(unix.SIGKILL)) })
		defer stop()
		st, err := p.Wait(context.Background())
		r.SetReadDeadline(time.Now().Add(probeDrain))
		<-read
		return st.Code, err
	}
}

// Health implements proto.AgentService.
func (s *Service) Health(ctx context.Context, req *proto.HealthRequest) (*proto.HealthResponse, error) {
	c, err := s.running(req.Container)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	m := c.health
	c.mu.Unlock()
	if m == nil {
		return nil, errorf(codes.FailedPrecondition, "container %s has no health check", req.Container)
	}
	results, err := m.Next(ctx, req.After)
	if errors.Is(err, io.EOF) {
		return nil, errorf(codes.FailedPrecondition, "container %s has ended", req.Container)
	}
	if err != nil {
		return nil, failed("health of container "+req.Container, err)
	}
	res := new(proto.HealthResponse)
	for _, r := range results {
		res.Results = append(res.Results, &proto.HealthResult{
			Number: r.Number, StartUnixNano: r.Start.UnixNano(), EndUnixNano: r.End.UnixNano(),
			ExitCode: int32(r.ExitCode), Output: r.Output, Status: r.Status, FailingStreak: r.Streak,
		})
	}
	return res, nil
}
