package health_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sampan/guest/health"
)

// script is a probe that plays exit codes, one a call, the last for ever.
func script(codes ...int) health.Probe {
	return func(_ context.Context, out io.Writer) (int, error) {
		code := codes[0]
		if len(codes) > 1 {
			codes = codes[1:]
		}
		fmt.Fprintf(out, "code %d", code)
		return code, nil
	}
}

// watch reads n results and tells when each probe began, and what it made of
// the container.
func watch(t *testing.T, m *health.Monitor, n int) []string {
	t.Helper()
	began := time.Now()
	var got []string
	for seen := uint64(0); len(got) < n; {
		rs, err := m.Next(t.Context(), seen)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			got = append(got, fmt.Sprintf("%v %d %s %d", r.Start.Sub(began), r.ExitCode, r.Status, r.Streak))
			seen = r.Number
		}
	}
	return got
}

func TestStatus(t *testing.T) {
	usual := health.Check{Interval: 10 * time.Second, Timeout: time.Second, StartInterval: time.Second, Retries: 2}
	slow := usual
	slow.StartPeriod = 3 * time.Second
	for name, c := range map[string]struct {
		check health.Check
		codes []int
		want  string
	}{
		"healthy at once":   {usual, []int{0}, "10s 0 healthy 0, 20s 0 healthy 0"},
		"falls ill":         {usual, []int{0, 1, 1, 0}, "10s 0 healthy 0, 20s 1 healthy 1, 30s 1 unhealthy 2, 40s 0 healthy 0"},
		"never well":        {usual, []int{3}, "10s 3 starting 1, 20s 3 unhealthy 2, 30s 3 unhealthy 3"},
		"start period":      {slow, []int{1, 1, 0, 1}, "1s 1 starting 0, 2s 1 starting 0, 3s 0 healthy 0, 13s 1 healthy 1"},
		"after the period":  {slow, []int{1}, "1s 1 starting 0, 2s 1 starting 0, 3s 1 starting 1, 13s 1 unhealthy 2"},
		"well in its start": {slow, []int{0, 1}, "1s 0 healthy 0, 11s 1 healthy 1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := health.Start(c.check, script(c.codes...))
				defer m.Stop()
				want := strings.Split(c.want, ", ")
				if got := strings.Join(watch(t, m, len(want)), ", "); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		})
	}
}

func next(t *testing.T, m *health.Monitor) health.Result {
	t.Helper()
	rs, err := m.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return rs[0]
}

func TestProbeFails(t *testing.T) {
	check := health.Check{Interval: time.Second, Timeout: 2 * time.Second, StartInterval: time.Second, Retries: 3}
	for name, c := range map[string]struct {
		probe health.Probe
		want  string
	}{
		"too long": {func(ctx context.Context, out io.Writer) (int, error) {
			<-ctx.Done()
			return 137, nil
		}, "Health check exceeded timeout (2s)"},
		"too long, with words": {func(ctx context.Context, out io.Writer) (int, error) {
			io.WriteString(out, "so far")
			<-ctx.Done()
			return 137, nil
		}, "Health check exceeded timeout (2s): so far"},
		"not there": {func(context.Context, io.Writer) (int, error) {
			return 0, errors.New("executable file not found")
		}, "executable file not found"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := health.Start(check, c.probe)
				defer m.Stop()
				if r := next(t, m); r.ExitCode != -1 || r.Output != c.want {
					t.Errorf("got %d %q, want -1 %q", r.ExitCode, r.Output, c.want)
				}
			})
		})
	}
}

// A probe that talks too much costs no more than 4 KiB.
func TestOutputIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := health.Start(health.Check{Interval: 1, Timeout: time.Second, StartInterval: 1, Retries: 1}, func(_ context.Context, out io.Writer) (int, error) {
			for range 100 {
				out.Write(make([]byte, 1000))
			}
			return 0, nil
		})
		defer m.Stop()
		if r := next(t, m); len(r.Output) != 4096+len("...") {
			t.Errorf("%d bytes", len(r.Output))
		}
	})
}

func TestSuspendAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := health.Start(health.Check{Interval: time.Second, Timeout: time.Second, StartInterval: time.Second, Retries: 1}, script(0))
		m.Suspend()
		m.Suspend()
		time.Sleep(time.Minute)
		m.Resume()
		m.Resume()
		if r := next(t, m); r.Number != 1 {
			t.Errorf("probe %d: it went on while suspended", r.Number)
		}
		over := make(chan error)
		go func() {
			_, err := m.Next(t.Context(), 1000)
			over <- err
		}()
		m.Suspend()
		m.Stop()
		if err := <-over; err != io.EOF {
			t.Errorf("next after the end: %v", err)
		}
		m.Stop()
	})
}
