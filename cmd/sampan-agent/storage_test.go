package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/host/share"
	"sampan/proto"
	"sampan/vm"
)

// TestStorage is about layers on a share of the host, as many as an image can
// have, and about running out of memory and disk.
func TestStorage(t *testing.T) {
	images := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(images, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("base", busybox(t))
	put("top", layer(t, map[string]string{"etc/top": "top\n"}))
	server, closer, err := share.ReadOnlyDir(images)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	disk := newDisk(t)
	if err := os.Truncate(disk.Path, 256<<20); err != nil {
		t.Fatal(err)
	}
	g := boot(t, vm.Config{Disks: []vm.Disk{disk}, Shares: []vm.Share{{Tag: proto.ShareImages, ReadOnly: true, Server: server}}})
	g.configure()
	if got := g.shell("ahead", "cat /sys/class/bdi/$(awk '$5 == \"/run/sampan/images\" { print $3 }' /proc/self/mountinfo)/read_ahead_kb"); got != "1024\n" {
		t.Errorf("the share is read ahead by %q KiB, want 1024", got)
	}
	t.Run("out of memory", func(t *testing.T) { g.testOOM(t) })
	t.Run("many layers", func(t *testing.T) { g.testManyLayers(t, put) })
	t.Run("removed layer", func(t *testing.T) { g.testRemovedLayer(t, images) })
	t.Run("full disk", func(t *testing.T) { g.testFullDisk(t) })
	g.powerOff()
	checkClean(t, disk.Path)
}

// testFullDisk: the container is told, and can still be removed.
func (g *guest) testFullDisk(t *testing.T) {
	stdout, stderr, err := g.start("full", containerSpec("/bin/sh", "-c", "while cat /bin/busybox; do :; done > /big; stat -c %s /big; exit 3"), func(r *proto.StartRequest) { r.Layers = []string{"base"} })
	if err != nil {
		t.Fatal(err)
	}
	out, errs, code := g.finish("full", stdout, stderr)
	var size int64
	if _, err := fmt.Sscan(out, &size); err != nil || size < 100<<20 || code != 3 {
		t.Errorf("printed %q, exit %d; want a file of 100 MiB and more, 3", out, code)
	}
	if !strings.Contains(errs, "No space left on device") {
		t.Errorf("standard error: %q", errs)
	}
}

func (g *guest) testOOM(t *testing.T) {
	spec := containerSpec("/bin/sh", "-c", "a=x; while :; do a=$a$a$a$a; done")
	limit := int64(32 << 20)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if _, _, err := g.start("greedy", spec, nil); err != nil {
		t.Fatal(err)
	}
	w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: "greedy"})
	if err != nil || !w.OomKilled || w.ExitCode != 137 {
		t.Errorf("ended with %v, %v; want 137, killed for its memory", w, err)
	}
	if _, err := g.Remove(g.ctx(), &proto.RemoveRequest{Id: "greedy", Purge: true}); err != nil {
		t.Error(err)
	}
}

// testManyLayers runs a container of 127 layers, Docker's limit.
func (g *guest) testManyLayers(t *testing.T, put func(string, []byte)) {
	names := []string{"base"}
	for i := 1; i < 127; i++ {
		name := fmt.Sprintf("sha256-%064d", i) // as long as real ones
		put(name, layer(t, map[string]string{fmt.Sprintf("many/%d", i): "", "last": fmt.Sprintln(i)}))
		names = append(names, name)
	}
	begin := time.Now()
	stdout, stderr, err := g.start("many", containerSpec("/bin/sh", "-c", "ls /many | grep -c .; cat /last"), func(r *proto.StartRequest) { r.Layers = names })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s", time.Since(begin))
	if out, errs, _ := g.finish("many", stdout, stderr); out != "126\n126\n" {
		t.Errorf("printed %q, %q; want 126 files, of the last layer's 126", out, errs)
	}
}

// testRemovedLayer: a layer that the host has removed is let go of, so that
// its blocks are free, although the guest may believe in its name for long.
func (g *guest) testRemovedLayer(t *testing.T, images string) {
	stdout, stderr, err := g.start("last", containerSpec("/bin/true"), nil)
	if err != nil {
		t.Fatal(err)
	}
	g.finish("last", stdout, stderr)
	if err := os.Remove(filepath.Join(images, "top")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := g.Status(ctx, &proto.Empty{}); err != nil {
		t.Fatal(err)
	}
	for held(t, filepath.Join(images, "top")) {
		select {
		case <-ctx.Done():
			t.Fatal("the guest holds a removed layer")
		case <-time.After(20 * time.Millisecond):
		}
	}
	if got := g.shell("left", "cd /run/sampan/layers && ls -d base top"); !strings.Contains(got, "base\n") || !strings.Contains(got, "No such file") {
		t.Errorf("mounted layers: %q; want base", got)
	}
}

// held says whether this process, which serves the share, has a descriptor of
// a file that was removed.
func held(t *testing.T, path string) bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == path+" (deleted)" {
			return true
		}
	}
	return false
}
