// Package forward carries the host's connections to addresses of the guest's
// networks: every byte of a published port comes this way.
//
//	host ══ vsock, proto.PortForward ══> Forwarder ── TCP ──> container
//
// It does without Go's poller, which takes seven system calls and often a second
// thread to pass a message on. Here a thread waits for all its connections at
// once, and writes what it has read: three calls. A connection costs no goroutine
// and, while nothing waits to be written, no buffer.
//
// The life of a connection:
//
//	header ──> dialling ──> carrying ──> closed
//	   └───────────┴───── an error, or too late ─────┘
//
// A half-close is passed on when what was read before it has been written. An
// error of one side ends both: TCP sees a reset, and so does the host, since a
// stream closed before both its directions were ended was reset.
//
// Whatever ends the threads ends all connections, but not the service: Run begins
// anew, and says so. Streams that came meanwhile wait in the listener's queue.
package forward

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// headerWait is how long a stream may take to say where it leads.
	headerWait = 10 * time.Second
	// dialWait is how long the other end may take to accept.
	dialWait = 20 * time.Second
	// A service that fails begins anew at once, after restartMin when that fails
	// too, after twice that, and so on; as at first when it has lasted restartMax.
	restartMin = 100 * time.Millisecond
	restartMax = 10 * time.Second
	// maxLoops bounds the threads: each of them can fill what vsock carries.
	maxLoops = 4
)

// Forwarder serves the streams of one listener.
type Forwarder struct {
	log                  *slog.Logger
	headerWait, dialWait time.Duration
}

// New returns a Forwarder that logs what is wrong with a stream itself. Where
// nobody listens the stream just ends: that is the host's to tell.
func New(log *slog.Logger) *Forwarder {
	return &Forwarder{log: log, headerWait: headerWait, dialWait: dialWait}
}

// errEnded is what Run logs of a service that ends without a reason.
var errEnded = errors.New("it has ended by itself")

// Run is Serve, again whenever it fails, until ctx ends.
func (f *Forwarder) Run(ctx context.Context, listener int) {
	var wait time.Duration
	for {
		began := time.Now()
		err := f.Serve(ctx, listener)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > restartMax {
			wait = 0
		}
		f.log.Error("published ports: their connections are reset, and the forwarder is started again", "error", cmp.Or(err, errEnded), "after", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(max(2*wait, restartMin), restartMax)
	}
}

// Serve accepts streams, which begin with a proto.StreamHeader, from a listening
// socket without blocking mode, and carries them until ctx ends; then all are
// reset. It leaves the listener open. An error is the kernel's, who refuses what
// it never refuses.
func (f *Forwarder) Serve(ctx context.Context, listener int) error {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	var wake sync.Once
	end := func() { wake.Do(func() { unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }) }
	cancelled := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() { end(); close(cancelled) })
	defer func() {
		if !unhook() {
			<-cancelled // before its descriptor is another's
		}
		unix.Close(stop)
	}()
	var wg sync.WaitGroup
	errs := make([]error, min(runtime.NumCPU(), maxLoops))
	for i := range errs {
		wg.Go(func() {
			defer end()
			l, err := newLoop(f, listener, stop)
			if err == nil {
				err = l.run()
				l.close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
