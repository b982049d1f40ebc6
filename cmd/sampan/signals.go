package main

import (
	"context"
	"os"
	ossignal "os/signal"
	"sync"
	"syscall"

	"github.com/moby/moby/client"
	"github.com/moby/sys/signal"
)

// errForced ends a session by its user's third Ctrl-C, in Docker's words.
var errForced = &exitError{code: 130, text: "\ngot 3 SIGTERM/SIGINTs, forcefully exiting"}

// proxied receives the signals that belong to the container from now on, until
// stop is called; the caller hands them on with forward. A container may take
// no notice, or not run yet: the third SIGINT or SIGTERM calls force.
func proxied(force func()) (c chan os.Signal, stop func()) {
	raw := make(chan os.Signal, 16)
	ossignal.Notify(raw)
	// Room for those that come before the container runs.
	c = make(chan os.Signal, 128)
	var wg sync.WaitGroup
	wg.Go(func() {
		asked := 0
		for s := range raw {
			if s == syscall.SIGINT || s == syscall.SIGTERM {
				if asked++; asked == 3 {
					force()
				}
			}
			select {
			case c <- s:
			default: // nobody takes so many
			}
		}
	})
	return c, func() {
		ossignal.Stop(raw)
		close(raw)
		wg.Wait()
	}
}

// forward sends the container every signal that we get, until stop is called.
// Signals travel by name: their numbers differ between systems.
func forward(ctx context.Context, docker *client.Client, id string, signals chan os.Signal) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s := <-signals:
				if name := signalName(s); name != "" {
					// It may have ended meanwhile; its exit code tells.
					_, _ = docker.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: name})
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// callOff hands the signals on to a container that is being started, which ends
// the wait for the machine, until done is called. Those that come when it's too
// late for that, and too early for the container, are left in signals.
// calledOff is the signal that was taken, after done.
func callOff(ctx context.Context, docker *client.Client, id string, signals chan os.Signal) (calledOff func() os.Signal, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var taken os.Signal
	var kept []os.Signal
	wg.Go(func() {
		for {
			select {
			case s := <-signals:
				name := signalName(s)
				if name == "" {
					continue
				}
				// The start ends before this is answered: not cancelled with it.
				if _, err := docker.ContainerKill(context.WithoutCancel(ctx), id, client.ContainerKillOptions{Signal: name}); err == nil {
					taken = s
				} else {
					kept = append(kept, s)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() os.Signal { return taken }, func() {
		cancel()
		wg.Wait()
		for _, s := range kept {
			select {
			case signals <- s:
			default: // nobody takes so many
			}
		}
	}
}

// signalName is empty for signals that are about this program itself.
func signalName(s os.Signal) string {
	switch s {
	case syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGWINCH:
		return ""
	}
	for name, n := range signal.SignalMap {
		if n == s && name != "CLD" && name != "POLL" && name != "IOT" {
			return name
		}
	}
	return ""
}
