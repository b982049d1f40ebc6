// Command sampand is Sampan's daemon: it serves the Docker Engine API on
// $SAMPAN_HOME/docker.sock and keeps the virtual machine, the images, the
// network and the shares. One runs per $SAMPAN_HOME; `sampan` starts it on
// demand. It ends in order on SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// build is set by the linker.
var build = "unknown"

func main() { os.Exit(run()) }

func run() int {
	readyFD := flag.Int("ready-fd", -1, "descriptor that receives \"ok\", or the reason why not, when the daemon has started")
	version := flag.Bool("version", false, "print the build and end")
	flag.Parse()
	if *version {
		fmt.Println("sampand", build)
		return 0
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "sampand: unexpected argument %q\n", flag.Arg(0))
		return 2
	}
	ready := newReady(*readyFD)
	defer ready.close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// The client that started the daemon may have ended: its pipe is no reason to.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)

	err := serve(ctx, ready, log)
	switch {
	case errors.Is(err, errRunning):
		ready.ok()
		return 0
	case err != nil:
		ready.fail(err)
		log.Error(err.Error())
		return 1
	}
	return 0
}

// homeDir is $SAMPAN_HOME, by default ~/.sampan.
func homeDir() (string, error) {
	dir := os.Getenv("SAMPAN_HOME")
	if dir == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no home directory (%w): set SAMPAN_HOME", err)
		}
		dir = filepath.Join(user, ".sampan")
	}
	return filepath.Abs(dir)
}

// ready tells whoever started the daemon how that went.
type ready struct{ f *os.File }

func newReady(fd int) *ready {
	if fd < 0 {
		return &ready{}
	}
	syscall.CloseOnExec(fd)
	return &ready{os.NewFile(uintptr(fd), "ready")}
}

func (r *ready) ok() { r.say("ok") }

func (r *ready) fail(err error) { r.say(err.Error()) }

// say sends the one message; its receiver may be gone.
func (r *ready) say(msg string) {
	if r.f != nil {
		fmt.Fprintln(r.f, msg)
		r.close()
	}
}

func (r *ready) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}
