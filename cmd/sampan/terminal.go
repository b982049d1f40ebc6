package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/moby/client"
	"github.com/moby/term"
)

// rawTerminal makes the terminal behind our stdin raw, if it is one. restore
// may be called more than once.
func (a *app) rawTerminal() (restore func(), err error) {
	fd, is := term.GetFdInfo(a.in)
	if !is {
		return func() {}, nil
	}
	state, err := term.SetRawTerminal(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.RestoreTerminal(fd, state) }, nil
}

// checkTerminal refuses a terminal session whose input isn't a terminal: the
// program in the container would wait for keys that nobody can type.
func (a *app) checkTerminal(tty, stdin bool) error {
	if _, is := term.GetFdInfo(a.in); tty && stdin && !is {
		return &exitError{code: exitFailure, text: "the input device is not a TTY"}
	}
	return nil
}

// terminalSize of our stdout; zero when it is no terminal.
func (a *app) terminalSize() client.ConsoleSize {
	fd, is := term.GetFdInfo(a.out)
	if !is {
		return client.ConsoleSize{}
	}
	ws, err := term.GetWinsize(fd)
	if err != nil {
		return client.ConsoleSize{}
	}
	return client.ConsoleSize{Height: uint(ws.Height), Width: uint(ws.Width)}
}

// watchSize calls resize now and whenever our terminal's size changes, until
// stop is called. Errors are dropped: the process may have ended.
func (a *app) watchSize(ctx context.Context, resize func(context.Context, client.ConsoleSize) error) (stop func()) {
	if a.terminalSize() == (client.ConsoleSize{}) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if size := a.terminalSize(); size != (client.ConsoleSize{}) {
				_ = resize(ctx, size)
			}
			select {
			case <-changes:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(changes)
		cancel()
		<-done
	}
}

// errDetached says that the user has left a session that goes on.
var errDetached = errors.New("read escape sequence")
