package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sampan/host/engine"
)

func TestPause(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "aa", "img", "sleep")
	id := d.ok("inspect", "-f", "{{.Id}}", "aa")
	state := func() string {
		return d.ok("inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}", "aa")
	}
	d.refused("Container "+id+" is not paused", "unpause", "aa")
	d.ok("pause", "aa")
	if got := state(); got != "paused true true" {
		t.Errorf("paused: %s", got)
	}
	if out := d.ok("ps", "--format", "{{.Status}}"); !strings.HasSuffix(out, "(Paused)") {
		t.Errorf("ps: %s", out)
	}
	d.refused("Container "+id+" is already paused", "pause", "aa")
	d.refused("cannot start a paused container, try unpause instead", "start", "aa")
	d.refused("is paused, unpause the container before exec", "exec", "aa", "true")
	d.ok("unpause", "aa")
	if got := state(); got != "running false true" {
		t.Errorf("unpaused: %s", got)
	}
	// A stop ends the pause, or it would not be heard.
	d.ok("pause", "aa")
	d.ok("stop", "aa")
	d.refused("is not running", "pause", "aa")
	g := d.machine.running()
	g.mu.Lock()
	defer g.mu.Unlock()
	if want := []string{"freeze true", "freeze false", "freeze true", "freeze false"}; !slices.Equal(g.calls, want) {
		t.Errorf("the guest was asked %q, want %q", g.calls, want)
	}
}

func TestTop(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "aa", "img", "sleep")
	fields := func(args ...string) (out []string) {
		for line := range strings.Lines(d.ok(append([]string{"top", "aa"}, args...)...)) {
			f := strings.Fields(line)
			if len(args) == 0 {
				f[4] = "TIME" // of day
			}
			out = append(out, strings.Join(f, " "))
		}
		return out
	}
	if got, want := fields(), []string{
		"UID PID PPID C TIME TTY TIME CMD", "root 42 1 0 TIME ? 00:00:00 main --all", "1000 43 42 61 TIME pts/0 00:01:01 [worker]",
	}; !slices.Equal(got, want) {
		t.Errorf("top: %q, want %q", got, want)
	}
	if got, want := fields("-o", "pid,user,stat,args"), []string{"PID USER STAT COMMAND", "42 root Ss main --all", "43 1000 Sl [worker]"}; !slices.Equal(got, want) {
		t.Errorf("top -o: %q, want %q", got, want)
	}
	if got := fields("aux"); !strings.HasPrefix(got[0], "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND") {
		t.Errorf("top aux: %q", got)
	}
	d.refused("ps -Z is not supported", "top", "aa", "-Z")
	d.refused(`the column "label" of ps is not supported`, "top", "aa", "-o", "pid,label")
	d.refused("Couldn't find PID field in ps output", "top", "aa", "-o", "args")
	d.ok("rm", "-f", "aa")
	d.refused("No such container: aa", "top", "aa")
}

func TestStats(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "aa", "img", "sleep")
	d.ok("create", "--name", "bb", "img")
	got := d.ok("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}", "aa", "bb")
	if want := "aa 20.00% 2MiB / 10MiB 20.00% 3kB / 4kB 1kB / 2kB 4\nbb 0.00% 0B / 0B 0.00% 0B / 0B 0B / 0B 0"; got != want {
		t.Errorf("stats: %q, want %q", got, want)
	}
	if code, body := d.raw("GET", "/containers/aa/stats?stream=1&one-shot=1", ""); code != 400 {
		t.Errorf("stream and one-shot: %d %s", code, body)
	}
	d.refused("No such container: nope", "stats", "--no-stream", "nope")
}

// A container that is removed while its size is asked for is left out.
func TestSizeOfRemoved(t *testing.T) {
	d := start(t)
	d.ok("run", "--name", "aa", "img", "echo")
	asked := make(chan struct{})
	d.machine.running().measuring = func() { close(asked) }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() {
		list, err := d.engine.List(ctx, engine.ListOptions{All: true, Size: true})
		if err == nil && len(list) != 0 {
			err = fmt.Errorf("found %v", list)
		}
		got <- err
	}()
	select {
	case <-asked:
	case err := <-got:
		t.Fatalf("not asked: %v", err)
	}
	d.ok("rm", "aa")
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestUpdate(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "aa", "-m", "64m", "img", "sleep")
	d.ok("update", "-m", "100m", "--memory-swap", "200m", "--cpus", "1.5", "--pids-limit", "50", "--restart", "on-failure:3", "aa")
	got := d.ok("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}", "aa")
	if want := "104857600 1500000000 50 on-failure:3"; got != want {
		t.Errorf("updated: %q, want %q", got, want)
	}
	g := d.machine.running()
	g.mu.Lock()
	calls := slices.Clone(g.calls)
	g.mu.Unlock()
	if len(calls) != 1 || !strings.Contains(calls[0], `"limit":104857600`) || !strings.Contains(calls[0], `"quota":150000`) || strings.Contains(calls[0], "devices") {
		t.Errorf("the guest was told %q", calls)
	}
	d.refused("CPU Quota cannot be updated as NanoCPUs has already been set", "update", "--cpu-quota", "1000", "aa")
	d.refused("Minimum memory limit allowed is 6MB", "update", "-m", "1m", "--memory-swap", "2m", "aa")
	if out := d.ok("update", "--blkio-weight", "100", "aa"); !strings.HasPrefix(out, "aa\nYour kernel does not support Block I/O weight") {
		t.Errorf("update of a weight: %q", out)
	}
	for field, body := range map[string]string{
		"CpuRealtimePeriod": `{"CpuRealtimePeriod": 1000}`, "OomKillDisable": `{"OomKillDisable": true}`, "CgroupParent": `{"CgroupParent": "x"}`,
		"MemorySwappiness": `{"MemorySwappiness": 5}`, "BlkioDeviceReadBps": `{"BlkioDeviceReadBps": [{"Path": "/dev/vda", "Rate": 1}]}`,
		"Devices": `{"Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse"}]}`,
	} {
		if code, text := d.raw("POST", "/containers/aa/update", body); code < 400 || !strings.Contains(text, "HostConfig."+field+" is not supported") {
			t.Errorf("update of %s: %d %s", field, code, text)
		}
	}
	d.ok("run", "-d", "--rm", "--name", "bb", "img", "sleep")
	d.refused("Restart policy cannot be updated because AutoRemove is enabled", "update", "--restart", "always", "bb")
}

func TestRename(t *testing.T) {
	d := start(t)
	d.ok("create", "--name", "aa", "img")
	d.ok("create", "--name", "bb", "img")
	id := d.ok("inspect", "-f", "{{.Id}}", "bb")
	d.refused(`Error when allocating new name: Conflict. The container name "/bb" is already in use by container "`+id+`"`, "rename", "aa", "bb")
	d.refused("Error when allocating new name: Invalid container name (/b@d)", "rename", "aa", "b@d")
	d.refused("Renaming a container with the same name as its current name", "rename", "aa", "aa")
	d.ok("rename", "aa", "cc")
	d.ok("rm", "cc", "bb")
}

// A container can't have processors that the machine has not: the tests' has
// four.
func TestCPUs(t *testing.T) {
	d := start(t)
	d.ok("create", "--name", "aa", "--cpus", "4", "--cpuset-cpus", "0,2-3", "img")
	for _, args := range [][]string{{"create", "img"}, {"update", "aa"}} {
		with := func(option, value string) []string { return []string{args[0], option, value, args[1]} }
		d.refused("range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available", with("--cpus", "4.01")...)
		d.refused("Requested CPUs are not available - requested 1-4, available: 0-3", with("--cpuset-cpus", "1-4")...)
	}
}

// A memory limit can't pass the limit of memory and swap that is set already.
func TestUpdateBelowSwap(t *testing.T) {
	d := start(t)
	d.ok("create", "--name", "cc", "-m", "32m", "img")
	const want = "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
	if out, errs, code := d.docker(nil, "update", "-m", "128m", "cc"); code != 1 || !strings.Contains(errs, want) {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	d.ok("update", "-m", "128m", "--memory-swap", "256m", "cc")
}
