package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/moby/term"
)

// session is a container in the foreground.
type session struct {
	id         string
	tty        bool
	stdin      bool
	mute       [2]bool // stdout, stderr: not attached to
	detachKeys string
	sigProxy   bool
	autoRemove bool
	// start says that the session starts the container; else it runs already.
	start bool
}

// foreground attaches to a container, starts it if asked to, and returns its
// exit code when it has ended, or errDetached. An error of the start is the
// daemon's own.
//
// The order matters: attached and waited for first, started then, so that
// nothing of a short-lived container is missed.
func (a *app) foreground(ctx context.Context, docker *client.Client, s session) (code int, err error) {
	ctx, force := context.WithCancelCause(ctx)
	defer force(nil)
	defer func() {
		if err != nil && context.Cause(ctx) == error(errForced) {
			err = errForced
		}
	}()
	keys, err := detachSequence(s.detachKeys)
	if err != nil {
		return 0, err
	}
	conn, err := docker.ContainerAttach(ctx, s.id, client.ContainerAttachOptions{
		Stream: true, Stdin: s.stdin, Stdout: !s.mute[0], Stderr: !s.mute[1], DetachKeys: s.detachKeys,
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	wait := docker.ContainerWait(ctx, s.id, client.ContainerWaitOptions{Condition: s.condition()})

	var signals chan os.Signal
	if s.sigProxy {
		var stop func()
		signals, stop = proxied(func() { force(errForced) }) // kept until the container runs
		defer stop()
	}
	if s.start {
		if err := a.startForeground(ctx, docker, s, wait, signals); err != nil {
			return 0, err
		}
	}
	if s.sigProxy {
		defer forward(ctx, docker, s.id, signals)()
	}
	if s.tty {
		if s.stdin {
			restore, err := a.rawTerminal()
			if err != nil {
				return 0, err
			}
			defer restore()
		}
		defer a.watchSize(ctx, func(ctx context.Context, size client.ConsoleSize) error {
			_, err := docker.ContainerResize(ctx, s.id, client.ContainerResizeOptions(size))
			return err
		})()
	}
	st := stream{conn: conn.HijackedResponse, tty: s.tty, out: a.out, err: a.err, detachKeys: keys}
	if s.stdin {
		st.in = a.in
	}
	if err := st.copy(ctx); errors.As(err, new(term.EscapeError)) {
		return 0, errDetached
	} else if err != nil {
		// As with Docker: the container ran, so this is no failure of the start,
		// and it runs on when nobody reads any more (`run … | head`).
		return 0, &exitError{code: exitFailure, text: err.Error()}
	}
	return exitCode(wait)
}

func (s session) condition() container.WaitCondition {
	switch {
	case s.autoRemove:
		return container.WaitConditionRemoved
	case s.start:
		return container.WaitConditionNextExit
	}
	return container.WaitConditionNotRunning
}

// startForeground starts the container; one of --rm that can't be started is
// gone when this returns.
func (a *app) startForeground(ctx context.Context, docker *client.Client, s session, wait client.ContainerWaitResult, signals chan os.Signal) error {
	calledOff, done := callOff(ctx, docker, s.id, signals)
	err := a.start(ctx, docker, s.id)
	done()
	if sig := calledOff(); err != nil && sig != nil {
		err = &exitError{code: 128 + int(sig.(syscall.Signal))}
	}
	if err != nil && s.autoRemove {
		_, _ = exitCode(wait)
	}
	return startFailed(err)
}

func exitCode(wait client.ContainerWaitResult) (int, error) {
	select {
	case r := <-wait.Result:
		if r.Error != nil {
			return exitDaemon, errors.New(r.Error.Message)
		}
		return int(r.StatusCode), nil
	case err := <-wait.Error:
		return exitDaemon, fmt.Errorf("waiting for the container: %w", err)
	}
}
