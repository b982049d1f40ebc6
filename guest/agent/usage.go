package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/guest/boot"
	"sampan/guest/runtime"
	"sampan/proto"
)

// freezeTimeout bounds the wait for a container's processes to stop; one in the
// kernel, waiting for a disk, stops when that answers.
const freezeTimeout = 10 * time.Second

// clockTick is what /proc counts processor time in (USER_HZ).
const clockTick = 10 * time.Millisecond

// runningContainer is the runtime's side of a container that runs.
func (s *Service) runningContainer(id string) (*container, *runtime.Container, error) {
	if err := s.ready(); err != nil {
		return nil, nil, err
	}
	c, err := s.running(id)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c, c.runtime, nil
}

// Freeze implements proto.AgentService.
func (s *Service) Freeze(ctx context.Context, req *proto.FreezeRequest) (*proto.Empty, error) {
	c, ctr, err := s.runningContainer(req.Container)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	c.mu.Lock()
	check := c.health
	c.mu.Unlock()
	if check != nil && req.Frozen { // a probe would stand still, too, and fail
		check.Suspend()
	}
	err = ctr.Freeze(ctx, req.Frozen)
	if check != nil && req.Frozen == (err != nil) {
		check.Resume()
	}
	if err != nil {
		if req.Frozen {
			err = errors.Join(err, ctr.Freeze(context.WithoutCancel(ctx), false))
		}
		return nil, failed("freeze container "+req.Container, err)
	}
	return &proto.Empty{}, nil
}

// Limit implements proto.AgentService.
func (s *Service) Limit(_ context.Context, req *proto.LimitRequest) (*proto.Empty, error) {
	_, ctr, err := s.runningContainer(req.Container)
	if err != nil {
		return nil, err
	}
	r := new(specs.LinuxResources)
	if err := json.Unmarshal(req.Resources, r); err != nil {
		return nil, errorf(codes.InvalidArgument, "resources: %v", err)
	}
	if err := ctr.Update(r); err != nil {
		return nil, failed("limit container "+req.Container, err)
	}
	return &proto.Empty{}, nil
}

// Processes implements proto.AgentService.
func (s *Service) Processes(_ context.Context, req *proto.ProcessRequest) (*proto.ProcessesResponse, error) {
	_, ctr, err := s.runningContainer(req.Container)
	if err != nil {
		return nil, err
	}
	pids, err := ctr.Pids()
	if err != nil {
		return nil, failed("list processes", err)
	}
	memory, err := memoryTotal()
	if err != nil {
		return nil, failed("list processes", err)
	}
	res := &proto.ProcessesResponse{TimeUnixNano: time.Now().UnixNano(), UptimeNano: int64(boot.Uptime()), MemoryTotal: memory}
	for _, pid := range pids {
		// One that has ended meanwhile is left out.
		if p, err := readProcess(pid); err == nil {
			res.Processes = append(res.Processes, p)
		}
	}
	return res, nil
}

// readProcess reads what /proc says of a process.
func readProcess(pid int) (*proto.ProcessInfo, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil, err
	}
	p, err := parseStat(string(stat))
	if err != nil {
		return nil, err
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(words[min(2, len(words)-1)], 10, 64) // the effective one of IDs
		switch words[0] {
		case "Uid:":
			p.Uid = uint32(n)
		case "Gid:":
			p.Gid = uint32(n)
		case "VmLck:":
			n, _ = strconv.ParseUint(words[1], 10, 64)
			p.Locked = n << 10
		}
	}
	cmdline, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return nil, err
	}
	if cmdline = bytes.TrimRight(cmdline, "\x00"); len(cmdline) > 0 {
		for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
			p.Args = append(p.Args, strings.ToValidUTF8(string(arg), "?"))
		}
	}
	return p, nil
}

// parseStat reads /proc/PID/stat (proc(5)): the name, in brackets, may have any
// character.
func parseStat(text string) (*proto.ProcessInfo, error) {
	begin, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if begin < 0 || end < begin {
		return nil, fmt.Errorf("stat of a process: %q", text)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:begin]))
	if err != nil {
		return nil, err
	}
	words := strings.Fields(text[end+1:]) // from field 3 on
	if len(words) < 22 {
		return nil, fmt.Errorf("stat of process %d: %q", pid, text)
	}
	n := func(field int) int64 {
		v, _ := strconv.ParseInt(words[field-3], 10, 64)
		return v
	}
	return &proto.ProcessInfo{
		Pid: int32(pid), Name: strings.ToValidUTF8(text[begin+1:end], "?"), State: words[0],
		Parent: int32(n(4)), Group: int32(n(5)), Session: int32(n(6)), Tty: uint32(n(7)), Foreground: int32(n(8)),
		CpuNano: (n(14) + n(15)) * int64(clockTick), Priority: int32(n(18)), Nice: int32(n(19)), Threads: int32(n(20)),
		StartNano: n(22) * int64(clockTick), Virtual: uint64(n(23)), Resident: uint64(n(24)) * uint64(os.Getpagesize()),
	}, nil
}

func memoryTotal() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	return info.Totalram * uint64(info.Unit), nil
}

// Usage implements proto.AgentService.
func (s *Service) Usage(_ context.Context, req *proto.ProcessRequest) (*proto.UsageResponse, error) {
	c, ctr, err := s.runningContainer(req.Container)
	if err != nil {
		return nil, err
	}
	u, err := usage(ctr)
	if err != nil {
		return nil, failed("usage of container "+req.Container, err)
	}
	if h := c.first.running(); h != nil {
		// Its network is that of its first process.
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", h.Pid()))
		if err == nil {
			u.Interfaces = parseNetDev(string(text))
		}
	}
	return u, nil
}

func usage(ctr *runtime.Container) (*proto.UsageResponse, error) {
	u := &proto.UsageResponse{TimeUnixNano: time.Now().UnixNano()}
	cpu, err := ctr.Figures("cpu.stat")
	if err != nil {
		return nil, err
	}
	u.CpuNano, u.CpuUserNano, u.CpuSystemNano = cpu["usage_usec"]*1000, cpu["user_usec"]*1000, cpu["system_usec"]*1000
	u.Periods, u.ThrottledPeriods, u.ThrottledNano = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]*1000
	if u.SystemNano, u.Processors, err = systemCPU(); err != nil {
		return nil, err
	}
	if u.MemoryStat, err = ctr.Figures("memory.stat"); err != nil {
		return nil, err
	}
	events, err := ctr.Figures("memory.events")
	if err != nil {
		return nil, err
	}
	u.MemoryFailures = events["oom"]
	for file, p := range map[string]*uint64{
		"memory.current": &u.Memory, "memory.max": &u.MemoryLimit, "pids.current": &u.Processes, "pids.max": &u.ProcessesLimit,
	} {
		if *p, err = ctr.Figure(file); err != nil {
			return nil, err
		}
	}
	total, err := memoryTotal()
	if err != nil {
		return nil, err
	}
	if u.MemoryLimit == 0 || u.MemoryLimit > total {
		u.MemoryLimit = total
	}
	devices, err := ctr.DeviceFigures()
	if err != nil {
		return nil, err
	}
	for name, d := range devices {
		var dev proto.DeviceUsage
		if _, err := fmt.Sscanf(name, "%d:%d", &dev.Major, &dev.Minor); err != nil {
			continue
		}
		u.Devices = append(u.Devices, &proto.DeviceUsage{Major: dev.Major, Minor: dev.Minor, Read: d["rbytes"], Written: d["wbytes"]})
	}
	slices.SortFunc(u.Devices, func(a, b *proto.DeviceUsage) int {
		return int(a.Major<<20|a.Minor) - int(b.Major<<20|b.Minor)
	})
	return u, nil
}

// systemCPU is the time of all processors since the guest's start.
func systemCPU() (nano uint64, processors uint32, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) < 8 || !strings.HasPrefix(words[0], "cpu"):
		case words[0] == "cpu":
			for _, w := range words[1:8] { // guest's time is in the user's
				n, err := strconv.ParseUint(w, 10, 64)
				if err != nil {
					return 0, 0, fmt.Errorf("/proc/stat: %w", err)
				}
				nano += n * uint64(clockTick)
			}
		default:
			processors++
		}
	}
	return nano, processors, nil
}

// parseNetDev reads /proc/PID/net/dev.
func parseNetDev(text string) (list []*proto.InterfaceUsage) {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		words := strings.Fields(rest)
		if !ok || name == "lo" || len(words) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(words[i], 10, 64); return v }
		list = append(list, &proto.InterfaceUsage{
			Name: name, RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		})
	}
	return list
}
