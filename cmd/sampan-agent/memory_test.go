package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/host/share"
	"sampan/proto"
	"sampan/vm"
)

// What is promised, in MiB. The guest's figure is what "free" calls used: all
// but what is available.
const (
	agentMost = 20
	idleMost  = 60
	// What a container reads is back with the host within backWithin, but for
	// backMiss: what the guest keeps of it, and what is free in small pieces.
	backMiss   = 128
	backWithin = 60 * time.Second
)

// TestMemory: an idle guest takes little, and the page cache goes back to the
// host when containers are done with it. With SAMPAN_NIGHTLY the container
// reads 1 GiB.
func TestMemory(t *testing.T) {
	memory, size := 1024, 384 // MiB
	if os.Getenv("SAMPAN_NIGHTLY") != "" {
		memory, size = 2048, 1024
	}
	images := t.TempDir()
	if err := os.WriteFile(filepath.Join(images, "base"), busybox(t), 0o644); err != nil {
		t.Fatal(err)
	}
	server, closer, err := share.ReadOnlyDir(images)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	g := boot(t, vm.Config{
		Memory: int64(memory) << 20, Disks: []vm.Disk{newDisk(t)},
		Shares: []vm.Share{{Tag: proto.ShareImages, ReadOnly: true, Server: server}},
	})
	g.configure()
	g.wantIdle("booted")

	g.shell("file", fmt.Sprintf("mkdir -p /data/volumes/vol/_data && truncate -s %dM /data/volumes/vol/_data/f", size))
	before := g.hostRSS()
	g.runInVolume("reader", "cat /vol/f > /dev/null", 0)
	full := g.hostRSS()
	if full-before < size-backMiss {
		t.Fatalf("reading %d MiB took %d MiB of the host's memory", size, full-before)
	}
	begin, now := time.Now(), full
	for full-now < size-backMiss && time.Since(begin) < backWithin {
		time.Sleep(100 * time.Millisecond) // the host has no event for it
		now = g.hostRSS()
	}
	t.Logf("host: %d MiB before, %d after reading, %d after %s", before, full, now, time.Since(begin).Round(time.Millisecond))
	if full-now < size-backMiss {
		t.Errorf("%d of %d MiB are back after %s, want %d", full-now, size, backWithin, size-backMiss)
	}
	g.wantIdle("after a container")
	// What was given away is there again for who needs it, and the page cache
	// gives way: together they'd be the machine's whole memory.
	need := memory - size
	g.runInVolume("hungry", fmt.Sprintf("cat /vol/f > /dev/null; busybox dd if=/dev/zero of=/mem/f bs=1M count=%d 2>/dev/null", need), need)
	g.powerOff()
}

// runInVolume runs a shell command in a container with the volume vol, and a
// tmpfs of so many MiB at /mem.
func (g *guest) runInVolume(id, command string, mem int) {
	g.t.Helper()
	spec := containerSpec("/bin/sh", "-c", command)
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Type: "volume", Source: "vol", Destination: "/vol"},
		specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/mem", Options: []string{fmt.Sprintf("size=%dm", mem+1)}})
	begin := time.Now()
	stdout, stderr, err := g.start(id, spec, func(r *proto.StartRequest) { r.Layers = []string{"base"} })
	if err != nil {
		g.t.Fatal(err)
	}
	out, errs, code := g.finish(id, stdout, stderr)
	g.t.Logf("%s: %q in %s", command, out, time.Since(begin).Round(time.Millisecond))
	if code != 0 || errs != "" {
		g.t.Errorf("%s: exit code %d, %q", command, code, errs)
	}
}

// wantIdle waits for the guest to be as small as is promised: it settles
// within a few seconds.
func (g *guest) wantIdle(when string) {
	g.t.Helper()
	const mib = 1 << 20
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	for {
		st, err := g.Status(g.ctx(), &proto.Empty{})
		if err != nil {
			g.t.Fatal(err)
		}
		used, agent := float64(st.MemoryTotal-st.MemoryAvailable)/mib, float64(st.AgentRss)/mib
		if used <= idleMost && agent <= agentMost {
			g.t.Logf("%s: the guest uses %.1f MiB, the agent %.1f", when, used, agent)
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			g.t.Errorf("%s: the guest uses %.1f MiB, the agent %.1f; want at most %d and %d\n%s",
				when, used, agent, idleMost, agentMost, g.shell("meminfo", "cat /proc/meminfo"))
			return
		}
	}
}

// hostRSS is how many MiB of the host's memory the hypervisor takes.
func (g *guest) hostRSS() int {
	g.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", g.machine.(vm.Processer).Pid()))
	if err != nil {
		g.t.Fatal(err)
	}
	var size, resident int // pages (proc(5))
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		g.t.Fatal(err)
	}
	return resident * os.Getpagesize() >> 20
}
