package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/moby/moby/api/types/events"
)

// AttachOptions say what a client wants of a container.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	// Stream follows the container; without it only Logs are of use.
	Stream bool
	// Logs replays what the container has put out before.
	Logs bool
}

// Attachment is a client of a container. It sees all output from the moment
// it was made, also of a run that begins later.
type Attachment struct {
	// TTY says that the container has a terminal.
	TTY bool

	e    *Engine
	c    *ctr
	o    AttachOptions
	hub  *hub
	sub  *sub
	once bool // stdin ends with this client
	// past is what there was before, for Logs; or why it can't be read.
	past    *logView
	pastErr error
}

// Attach makes a client of a container. Copy or Close has to follow.
func (e *Engine) Attach(name string, o AttachOptions) (*Attachment, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removing {
		return nil, conflict("container %s is marked for removal", name)
	}
	a := &Attachment{TTY: c.rec.Config.Tty, e: e, c: c, o: o, hub: c.hub}
	a.once = c.rec.Config.StdinOnce && !a.TTY
	log := c.log
	mark := func() {
		if o.Logs {
			a.past, a.pastErr = viewLog(e.logPath(c.id), log)
		}
	}
	if o.Stream {
		a.sub = c.hub.subscribe(o.Stdout, o.Stderr, mark)
	} else {
		mark()
	}
	return a, nil
}

// Copy carries bytes between a client and the container until the container or
// the client ends. stdin is read in a goroutine that ends with the client's
// connection; an error from it other than io.EOF means that the client has
// left. out is never called by two goroutines at once.
func (a *Attachment) Copy(ctx context.Context, stdin io.Reader, out func(Stream, []byte) error) error {
	defer a.Close()
	a.e.emitContainer(a.c, events.ActionAttach, nil)
	if a.pastErr != nil {
		return a.pastErr
	}
	if a.past != nil {
		o := LogOptions{Stdout: a.o.Stdout, Stderr: a.o.Stderr, Tail: -1}
		if err := a.past.read(ctx, o, nil, func(l LogEntry) error { return out(l.Stream, l.Line) }); err != nil {
			return err
		}
		a.past.close()
	}
	if !a.o.Stream {
		return nil
	}
	stop := context.AfterFunc(ctx, a.sub.leave)
	defer stop()
	// A client that reads nothing must not keep the daemon from ending.
	stopClosing := context.AfterFunc(a.e.ctx, func() { time.AfterFunc(drainTimeout, a.sub.leave) })
	defer stopClosing()
	if a.o.Stdin && a.hub.stdinW != nil {
		go a.copyStdin(stdin)
	}
	for {
		ch, err := a.sub.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errLeft) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := out(ch.stream, ch.data); err != nil {
			return err
		}
	}
}

func (a *Attachment) copyStdin(stdin io.Reader) {
	r := &tracked{r: stdin}
	io.Copy(a.hub.stdinW, r)
	if a.once {
		a.hub.stdinW.Close()
	}
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		a.sub.leave()
		a.e.emitContainer(a.c, events.ActionDetach, nil)
	}
}

// tracked remembers how a reader ended.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.err = err
	return n, err
}

// Close ends the attachment. Idempotent.
func (a *Attachment) Close() {
	if a.past != nil {
		a.past.close()
	}
	if a.sub != nil {
		a.sub.leave()
	}
}
