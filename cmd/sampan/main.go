// Command sampan runs containers: it is a thin client of the Docker Engine API
// that sampand serves on $SAMPAN_HOME/docker.sock, with the words, the output
// and the exit codes of Docker's own client. When nobody serves the socket it
// starts sampand.
//
// One file per command. Commands return errors; only main turns them into text
// and an exit code (errors.go). Stdout is data, stderr is for people.
//
// Hazards: in `run -t` the terminal is raw, so nothing but the session may
// write to it; what is attached must be attached, and waited for, before the
// container is started, or its first bytes or its exit are missed.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// build is set by the linker (see the Makefile) and compared with sampand's.
var build = "unknown"

func main() {
	cobra.EnableCommandSorting = false // the groups are in our order
	os.Exit(run(context.Background(), os.Args[1:], newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv)))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, a *app) int {
	defer a.close()
	root := newRootCommand(a)
	root.SetArgs(args)
	return report(a.err, root.ExecuteContext(ctx))
}

// app is what every command works with.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	build    string
	// startTimeout bounds how long a daemon may take until it serves; before
	// that, another one may have to end.
	startTimeout time.Duration
	conn         *connection // made by the first command that needs it
}

func newApp(in io.Reader, out, err io.Writer, getenv func(string) string) *app {
	return &app{in: in, out: out, err: err, getenv: getenv, build: build, startTimeout: 60 * time.Second}
}

func (a *app) close() {
	if a.conn != nil {
		a.conn.close()
	}
}
