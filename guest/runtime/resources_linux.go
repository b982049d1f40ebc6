package runtime

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// cgroupSettings are the spec's limits in the terms of cgroup v2. -1 is "max".
func cgroupSettings(r *specs.LinuxResources) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	var list []setting
	add := func(file, value string) { list = append(list, setting{file, value}) }
	if m := r.Memory; m != nil {
		memory, err := memorySettings(m)
		if err != nil {
			return nil, err
		}
		list = append(list, memory...)
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares != 0 {
			add("cpu.weight", strconv.FormatUint(cpuWeight(*c.Shares), 10))
		}
		if c.Quota != nil || c.Period != nil {
			add("cpu.max", cpuMax(c.Quota, c.Period))
		}
		if c.Cpus != "" {
			add("cpuset.cpus", c.Cpus)
		}
		if c.Mems != "" {
			add("cpuset.mems", c.Mems)
		}
		if c.Idle != nil {
			add("cpu.idle", strconv.FormatInt(*c.Idle, 10))
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		add("pids.max", limitString(*r.Pids.Limit))
	}
	if b := r.BlockIO; b != nil {
		io, err := ioSettings(b)
		if err != nil {
			return nil, err
		}
		list = append(list, io...)
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
	}
	if r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0) {
		return nil, fmt.Errorf("network classes and priorities: %w", errors.ErrUnsupported)
	}
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		if strings.Contains(file, "/") || strings.HasPrefix(file, "cgroup.") {
			return nil, fmt.Errorf("cgroup file %q: not a controller's", file)
		}
		add(file, r.Unified[file])
	}
	return list, nil
}

// memorySettings turns v1's memory plus swap into v2's swap alone.
func memorySettings(m *specs.LinuxMemory) ([]setting, error) {
	var list []setting
	if m.Limit != nil && *m.Limit != 0 {
		list = append(list, setting{"memory.max", limitString(*m.Limit)})
	}
	if m.Swap != nil && *m.Swap != 0 {
		swap := *m.Swap
		if swap > 0 {
			if m.Limit == nil || *m.Limit <= 0 || swap < *m.Limit {
				return nil, fmt.Errorf("limit of memory plus swap %d: below the limit of memory", swap)
			}
			swap -= *m.Limit
		}
		list = append(list, setting{"memory.swap.max", limitString(swap)})
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		list = append(list, setting{"memory.low", limitString(*m.Reservation)})
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		return nil, fmt.Errorf("disable the OOM killer: %w by cgroup v2", errors.ErrUnsupported)
	}
	return list, nil
}

func limitString(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// cpuMax is quota and period in microseconds.
func cpuMax(quota *int64, period *uint64) string {
	q, p := "max", uint64(100_000)
	if quota != nil && *quota > 0 {
		q = strconv.FormatInt(*quota, 10)
	}
	if period != nil && *period != 0 {
		p = *period
	}
	return fmt.Sprintf("%s %d", q, p)
}

// cpuWeight turns v1's shares (2 to 262144, default 1024) into v2's weight (1
// to 10000, default 100), by the formula that runc and crun have used since
// 2025; it maps minimum, default and maximum onto each other.
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func ioSettings(b *specs.LinuxBlockIO) ([]setting, error) {
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		return nil, fmt.Errorf("leaf weight of block I/O: %w by cgroup v2", errors.ErrUnsupported)
	}
	var list []setting
	weight := func(w uint16) uint64 { return 1 + (uint64(w)-10)*9999/990 } // 10 to 1000 → 1 to 10000
	if b.Weight != nil && *b.Weight != 0 {
		list = append(list, setting{"io.weight", fmt.Sprintf("default %d", weight(*b.Weight))})
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil && *d.Weight != 0 {
			list = append(list, setting{"io.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, weight(*d.Weight))})
		}
	}
	for _, t := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice},
		{"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice},
		{"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			list = append(list, setting{"io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.key, d.Rate)})
		}
	}
	return list, nil
}
