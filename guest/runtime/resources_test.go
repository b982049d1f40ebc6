package runtime

import (
	"fmt"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCgroupSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   specs.LinuxResources
		want string
	}{
		{"nothing", specs.LinuxResources{}, "[]"},
		{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](150), Reservation: ptr[int64](50)}}, "[{memory.max 100} {memory.swap.max 50} {memory.low 50}]"},
		{"unlimited swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](-1)}}, "[{memory.max 100} {memory.swap.max max}]"},
		{"cpu", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024), Quota: ptr[int64](50000), Cpus: "0-1"}}, "[{cpu.weight 100} {cpu.max 50000 100000} {cpuset.cpus 0-1}]"},
		{"no quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](-1), Period: ptr[uint64](50000)}}, "[{cpu.max max 50000}]"},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](-1)}}, "[{pids.max max}]"},
		{"io", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](1000)}}, "[{io.weight default 10000}]"},
	} {
		got, err := cgroupSettings(&tt.in)
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, %v; want %s", tt.name, got, err, tt.want)
		}
	}
	bad := specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](50)}}
	if _, err := cgroupSettings(&bad); err == nil {
		t.Error("swap below memory: no error")
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("%d shares: weight %d, want %d", shares, got, want)
		}
	}
}

func TestMountPlan(t *testing.T) {
	m, err := mountPlan(specs.Mount{Destination: "/x/../data", Type: "bind", Source: "/src", Options: []string{"rbind", "rro", "ro", "rw", "rprivate", "nosuid"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Dest != "/data" || m.Type != "" || !m.Recursive || m.RecSet != unix.MOUNT_ATTR_RDONLY || m.Set != unix.MOUNT_ATTR_NOSUID ||
		m.Clear != unix.MOUNT_ATTR_RDONLY || m.Propagation != unix.MS_PRIVATE || !m.PropRec {
		t.Errorf("plan %+v", m)
	}
	for _, bad := range []specs.Mount{
		{Destination: "/d", Type: "bind", Source: "relative"},
		{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"whatever"}},
		{Destination: "/d", Type: "tmpfs", Options: []string{"tmpcopyup"}},
	} {
		if _, err := mountPlan(bad); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}

func TestCapabilitySet(t *testing.T) {
	set, err := capabilitySet([]string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}, 40)
	if err != nil || set != 1|1<<40 {
		t.Errorf("%#x, %v", set, err)
	}
	for _, bad := range []string{"chown", "CAP_chown", "CAP_NOTHING"} {
		if _, err := capabilitySet([]string{bad}, 40); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
