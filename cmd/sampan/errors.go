package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of `run`, as Docker's: the container's own ones are passed on.
const (
	exitFailure       = 1
	exitDaemon        = 125 // the container was not started, or the usage is wrong
	exitNotExecutable = 126
	exitNotFound      = 127
)

// An exitError ends the program with a code. Without a text nothing is said:
// the code is the container's.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.text
}

// exitWith is nil for 0.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// report tells err to people and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code, text := exitFailure, err.Error()
	if exit, ok := errors.AsType[*exitError](err); ok {
		code, text = exit.code, exit.text
	} else {
		text = plainText(err)
	}
	if text != "" {
		fmt.Fprintln(w, text)
	}
	return code
}

// plainText of an error. The API client wraps what our dialer says in text
// about HTTP, which helps nobody.
func plainText(err error) string {
	if daemon, ok := errors.AsType[*daemonError](err); ok {
		return daemon.Error()
	}
	return err.Error()
}

// runError is what `run` and `create` make of err: Docker's form and codes.
func runError(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*exitError](err); ok {
		return err
	}
	code := exitDaemon
	if _, ok := errors.AsType[*startError](err); ok {
		code = startCode(err)
	}
	return &exitError{
		code: code,
		text: fmt.Sprintf("%s: %s\n\nRun '%s --help' for more information",
			cmd.Root().Name(), plainText(err), cmd.CommandPath()),
	}
}

// A startError is the reason why a container was not created, or did not start.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func startFailed(err error) error {
	if err == nil {
		return nil
	}
	return &startError{err}
}

// startCode tells from a daemon's message why a process was not executed.
func startCode(err error) int {
	text := err.Error()
	switch {
	case strings.Contains(text, "the virtual machine does not run: "):
		return exitDaemon // whatever words QEMU or the console's tail have
	case strings.Contains(text, "executable file not found"),
		strings.Contains(text, "no such file or directory"),
		strings.Contains(text, "system cannot find the file specified"):
		return exitNotFound
	case strings.Contains(text, "permission denied"),
		strings.Contains(text, "is a directory"),
		strings.Contains(text, "exec format error"):
		return exitNotExecutable
	}
	return exitDaemon
}

// joinErrors has one line for each error.
func joinErrors(errs []error) error {
	var lines []string
	for _, err := range errs {
		lines = append(lines, plainText(err))
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}
