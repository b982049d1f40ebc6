package api_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Whatever clients do to the same few containers at the same time, nothing
// hangs, nothing is left behind, and the names are free again.
func TestStress(t *testing.T) {
	d := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	programs := [][]string{{"true"}, {"missing"}, {"sleep"}, {"exit", "1"}, {"spam", "100000"}, {"stubborn"}}
	zero := 0
	verbs := []func(name string){
		func(n string) { d.client.ContainerStart(ctx, n, client.ContainerStartOptions{}) },
		func(n string) { d.client.ContainerStop(ctx, n, client.ContainerStopOptions{Timeout: &zero}) },
		func(n string) { d.client.ContainerKill(ctx, n, client.ContainerKillOptions{Signal: "KILL"}) },
		func(n string) {
			d.client.ContainerRemove(ctx, n, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		},
		func(n string) { d.client.ContainerRename(ctx, n, client.ContainerRenameOptions{NewName: n + "x"}) },
		func(n string) { d.client.ContainerInspect(ctx, n, client.ContainerInspectOptions{}) },
		func(n string) { d.client.ContainerList(ctx, client.ContainerListOptions{All: true}) },
		func(n string) { d.client.ContainerRestart(ctx, n, client.ContainerRestartOptions{Timeout: &zero}) },
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		rnd := rand.New(rand.NewPCG(1, uint64(worker)))
		wg.Go(func() {
			for i := range 30 {
				name := fmt.Sprint("name", rnd.IntN(3))
				host := container.HostConfig{AutoRemove: rnd.IntN(2) == 0}
				if !host.AutoRemove && rnd.IntN(2) == 0 {
					host.RestartPolicy.Name = "always"
				}
				cfg := container.Config{Image: "img", Cmd: programs[rnd.IntN(len(programs))], Volumes: map[string]struct{}{"/v": {}}}
				d.client.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name, Config: &cfg, HostConfig: &host})
				for range 4 {
					verbs[rnd.IntN(len(verbs))](name)
				}
				if i == 15 && worker == 0 {
					d.machine.crash()
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Fatal("something hangs")
	}
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		ids := strings.Fields(d.ok("ps", "-aq"))
		if len(ids) == 0 {
			break
		}
		d.docker(nil, append([]string{"rm", "-fv"}, ids...)...)
	}
	if out := d.ok("ps", "-a"); strings.Contains(out, "\n") {
		t.Fatalf("left:\n%s", out)
	}
	if out := d.ok("volume", "ls", "-q"); out != "" {
		t.Errorf("volumes left: %s", out)
	}
	for i := range 3 {
		d.ok("create", "--name", fmt.Sprint("name", i), "img")
		d.ok("create", "--name", fmt.Sprintf("name%dx", i), "img")
	}
	until(t, "nothing to hold the machine", func() bool {
		d.machine.mu.Lock()
		defer d.machine.mu.Unlock()
		return d.machine.holds == 0
	})
}
