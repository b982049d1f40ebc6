package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/moby/term"
)

// noticeAfter is how long a start may take without a word.
const noticeAfter = 700 * time.Millisecond

// start starts a container.
func (a *app) start(ctx context.Context, docker *client.Client, id string) error {
	defer a.noticeBoot(ctx)()
	_, err := docker.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return err
}

// noticeBoot tells who sits at a terminal what the wait is for, if it is for
// the machine to boot, until stop is called.
func (a *app) noticeBoot(ctx context.Context) (stop func()) {
	if _, is := term.GetFdInfo(a.err); !is {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(noticeAfter):
		}
		resp, err := a.machineCall(ctx, false, http.MethodGet, "", nil)
		if err != nil {
			return // whoever waits gets the error
		}
		defer resp.Body.Close()
		var s machineStatus
		if json.NewDecoder(resp.Body).Decode(&s) == nil && s.State == "starting" {
			fmt.Fprintln(a.err, "Starting the virtual machine ...")
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
