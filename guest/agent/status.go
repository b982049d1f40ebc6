package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sampan/guest/boot"
	"sampan/proto"
)

// Status implements proto.AgentService.
func (s *Service) Status(context.Context, *proto.Empty) (*proto.StatusResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	go s.layers.sweep()
	res := &proto.StatusResponse{UptimeNano: int64(boot.Uptime())}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, failed("status", err)
	}
	mem := parseMeminfo(string(meminfo))
	res.MemoryTotal, res.MemoryAvailable = mem["MemTotal"], mem["MemAvailable"]
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil, failed("status", err)
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return nil, failed("status", err)
	}
	res.AgentRss = resident * uint64(os.Getpagesize())
	res.AgentGoroutines = uint32(runtime.NumGoroutine())
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, failed("status", err)
	}
	res.AgentDescriptors = uint32(len(fds) - 1) // but for that of the reading itself
	var fs unix.Statfs_t
	if err := unix.Statfs(boot.DataDir, &fs); err != nil {
		return nil, failed("status", err)
	}
	reserved := fs.Bfree - fs.Bavail // the agent's
	res.DiskTotal, res.DiskFree = (fs.Blocks-reserved)*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if c.first.running() != nil {
			res.Containers++
		}
	}
	return res, nil
}

// parseMeminfo reads /proc/meminfo: bytes by name. Lines that are no sizes are
// left out.
func parseMeminfo(text string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || len(f) != 2 || f[1] != "kB" {
			continue
		}
		if n, err := strconv.ParseUint(f[0], 10, 64); err == nil && n < 1<<50 {
			m[name] = n << 10
		}
	}
	return m
}
