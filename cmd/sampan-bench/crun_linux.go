package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/host/imagetest"
)

// crunRuns is how many times crun runs for one figure: the guest's clock that a
// shell can read has steps of 10 ms.
const crunRuns = 10

// dockerCaps are the capabilities of a container of Docker's.
var dockerCaps = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW
CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE`)

// crunSpec is what Docker gives a runtime for a container that runs args,
// without a network's interface, which a runtime doesn't make.
func crunSpec(args ...string) (*specs.Spec, error) {
	inert := []string{"nosuid", "noexec", "nodev"}
	spec := &specs.Spec{
		Version: "1.0.2", Hostname: "box", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: inert},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, inert...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"ro"}, inert...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: inert},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=67108864"}, inert...)},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	var err error
	spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec)
	return spec, err
}

// crunImage is crun of the guest's Debian with a bundle for true and one for
// sleep, from a root that `make dist/root-crun` makes.
func crunImage(root string) (v1.Image, error) {
	tree, err := imagetest.TreeLayer(root)
	if err != nil {
		return nil, fmt.Errorf("%w: run `make dist/root-crun`", err)
	}
	busybox, err := os.ReadFile(filepath.Join(root, "usr/bin/busybox"))
	if err != nil {
		return nil, err
	}
	var files []imagetest.File
	for name, args := range map[string][]string{"true": {"true"}, "sleep": {"sleep", "100000"}} {
		spec, err := crunSpec(args...)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(spec)
		if err != nil {
			return nil, err
		}
		for _, dir := range []string{"", "rootfs/", "rootfs/bin/", "rootfs/dev/", "rootfs/proc/", "rootfs/sys/"} {
			files = append(files, imagetest.File{Name: name + "/" + dir})
		}
		files = append(files,
			imagetest.File{Name: name + "/config.json", Data: text},
			imagetest.File{Name: name + "/rootfs/bin/true", Mode: 0o755, Data: busybox},
			imagetest.File{Name: name + "/rootfs/bin/sleep", Mode: 0o755, Data: busybox})
	}
	bundles, err := imagetest.Layer(files...)
	if err != nil {
		return nil, err
	}
	return imagetest.Image(v1.Config{Env: []string{"PATH=/usr/bin"}}, tree, bundles)
}

// serveCrun starts a container that is privileged enough to run crun in the
// same guest, and in it one of crun's own for its exec.
func (b *bench) serveCrun(ctx context.Context) error {
	img, err := crunImage(b.crunRoot)
	if err != nil {
		return err
	}
	archive := filepath.Join(b.dir, "crun.tar")
	if err := imagetest.Archive(archive, "crun:latest", img); err != nil {
		return err
	}
	if err := b.do(ctx, "load", "-q", "-i", archive); err != nil {
		return err
	}
	if err := b.do(ctx, "run", "-d", "--privileged", "--cgroupns", "host", "--name", "crun", "crun", "busybox", "sleep", "100000"); err != nil {
		return err
	}
	// Its output isn't ours: crun would leave the container ours to wait for.
	return b.do(ctx, "exec", "crun", "busybox", "sh", "-c", "crun run -d -b /sleep asleep </dev/null >/dev/null 2>&1")
}

// crun times commands of crun in the guest, by the guest's clock: the mean of
// one, in ms.
func (b *bench) crun(ctx context.Context, command string) (float64, error) {
	script := fmt.Sprintf("now() { busybox cut -d' ' -f1 /proc/uptime; }; a=$(now); i=0; while [ $i -lt %d ]; do %s || exit 1; i=$((i+1)); done; echo $a $(now)", crunRuns, command)
	out, err := b.output(ctx, "exec", "crun", "busybox", "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	var from, to float64
	if _, err := fmt.Sscan(string(out), &from, &to); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return (to - from) * 1000 / crunRuns, nil
}

func (b *bench) crunRun(ctx context.Context) (float64, error) {
	return b.crun(ctx, "crun run -b /true t$i")
}

func (b *bench) crunExec(ctx context.Context) (float64, error) {
	return b.crun(ctx, "crun exec asleep true")
}

// many is how many containers run at once.
const many = 20

// crunMany times many runs of crun at once.
func (b *bench) crunMany(ctx context.Context) (float64, error) {
	script := fmt.Sprintf("now() { busybox cut -d' ' -f1 /proc/uptime; }; a=$(now); i=0; while [ $i -lt %d ]; do crun run -b /true m$i & i=$((i+1)); done; wait; echo $a $(now)", many)
	out, err := b.output(ctx, "exec", "crun", "busybox", "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	var from, to float64
	if _, err := fmt.Sscan(string(out), &from, &to); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return (to - from) * 1000, nil
}

// runMany times as many of ours.
func (b *bench) runMany(ctx context.Context) (float64, error) {
	return millis(func() error {
		var wg sync.WaitGroup
		errs := make(chan error, many)
		for range many {
			wg.Go(func() { errs <- b.do(ctx, "run", "--rm", "busybox", "true") })
		}
		wg.Wait()
		for range many {
			if err := <-errs; err != nil {
				return err
			}
		}
		return nil
	})
}
