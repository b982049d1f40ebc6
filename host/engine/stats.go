package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/container"

	"sampan/proto"
)

// statsInterval is how far two samples of a container's usage are apart.
const statsInterval = time.Second

// StatsOptions of Stats.
type StatsOptions struct {
	// Stream gives a sample every second until the container is removed; else it
	// is one, with what was before it to compare with, unless OneShot.
	Stream, OneShot bool
}

// Stats tells what a container uses. One that doesn't run uses nothing.
func (e *Engine) Stats(ctx context.Context, name string, o StatsOptions, emit func(container.StatsResponse) error) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	t := time.NewTicker(statsInterval)
	defer t.Stop()
	last, err := e.sample(ctx, c)
	if err != nil {
		return err
	}
	running := last.Read != (time.Time{})
	if o.Stream || o.OneShot || !running {
		if err := emit(last); err != nil || !o.Stream {
			return err
		}
	}
	for {
		select {
		case <-t.C:
		case <-c.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-e.ctx.Done():
			return nil
		}
		now, err := e.sample(ctx, c)
		if err != nil {
			return err
		}
		now.PreRead, now.PreCPUStats = last.Read, last.CPUStats
		if err := emit(now); err != nil || !o.Stream {
			return err
		}
		last = now
	}
}

// sample is what a container uses now.
func (e *Engine) sample(ctx context.Context, c *ctr) (container.StatsResponse, error) {
	v := c.view()
	s := container.StatsResponse{ID: c.id, Name: "/" + v.rec.Name, OSType: "linux"}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return s, nil
	}
	u, err := r.guest.Usage(ctx, &proto.ProcessRequest{Container: c.id})
	if err != nil {
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		select {
		case <-r.ended:
			return s, nil
		case <-r.guest.Done():
			return s, nil
		default:
		}
		return s, fmt.Errorf("stats of container %s: %s", v.rec.Name, message(err))
	}
	fillStats(&s, u, onBridge(v.ends))
	return s, nil
}

// fillStats puts the guest's figures where clients look for them.
func fillStats(s *container.StatsResponse, u *proto.UsageResponse, network bool) {
	s.Read = time.Unix(0, u.TimeUnixNano).UTC()
	s.CPUStats = container.CPUStats{
		CPUUsage:    container.CPUUsage{TotalUsage: u.CpuNano, UsageInUsermode: u.CpuUserNano, UsageInKernelmode: u.CpuSystemNano},
		SystemUsage: u.SystemNano, OnlineCPUs: u.Processors,
		ThrottlingData: container.ThrottlingData{Periods: u.Periods, ThrottledPeriods: u.ThrottledPeriods, ThrottledTime: u.ThrottledNano},
	}
	s.MemoryStats = container.MemoryStats{Usage: u.Memory, Limit: u.MemoryLimit, Stats: u.MemoryStat, Failcnt: u.MemoryFailures}
	s.PidsStats = container.PidsStats{Current: u.Processes, Limit: u.ProcessesLimit}
	for _, d := range u.Devices {
		s.BlkioStats.IoServiceBytesRecursive = append(s.BlkioStats.IoServiceBytesRecursive,
			container.BlkioStatEntry{Major: d.Major, Minor: d.Minor, Op: "read", Value: d.Read},
			container.BlkioStatEntry{Major: d.Major, Minor: d.Minor, Op: "write", Value: d.Written})
	}
	if !network { // the guest's own, which is not the container's
		return
	}
	s.Networks = map[string]container.NetworkStats{}
	for _, i := range u.Interfaces {
		s.Networks[i.Name] = container.NetworkStats{
			RxBytes: i.RxBytes, RxPackets: i.RxPackets, RxErrors: i.RxErrors, RxDropped: i.RxDropped,
			TxBytes: i.TxBytes, TxPackets: i.TxPackets, TxErrors: i.TxErrors, TxDropped: i.TxDropped,
		}
	}
}
