package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/proto"
)

// execKept is how long an ended exec can still be inspected, and how long one
// may wait for its start.
const execKept = 5 * time.Minute

// exec is one more process in a container, or in the guest itself.
type exec struct {
	id  string
	ctr *ctr // nil: the guest
	req container.ExecCreateRequest
	up  chan struct{} // closed when the guest has started it, or failed to

	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	guest   Guest
	run     *run // of the container, since the start; not modified after it
}

func (x *exec) container() string {
	if x.ctr == nil {
		return ""
	}
	return x.ctr.id
}

// command is as Docker tells it: with a space after the first word.
func (x *exec) command() string { return x.req.Cmd[0] + " " + strings.Join(x.req.Cmd[1:], " ") }

// ExecCreate prepares a process in a running container.
func (e *Engine) ExecCreate(name string, req container.ExecCreateRequest) (id string, err error) {
	if len(req.Cmd) == 0 {
		return "", invalid("no exec command specified")
	}
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	running := c.run != nil
	paused := c.rec.State.Status == container.StatePaused
	c.mu.Unlock()
	if !running {
		return "", conflict("container %s is not running", c.id)
	}
	if paused {
		return "", conflict("container %s is paused, unpause the container before exec", c.id)
	}
	x, err := e.addExec(c, req)
	if err != nil {
		return "", err
	}
	e.emitExec(x, events.ActionExecCreate+": "+events.Action(x.command()), nil)
	return x.id, nil
}

// MachineExec prepares a process in the guest itself.
func (e *Engine) MachineExec(req container.ExecCreateRequest) (id string, err error) {
	x, err := e.addExec(nil, req)
	if err != nil {
		return "", err
	}
	return x.id, nil
}

func (e *Engine) addExec(c *ctr, req container.ExecCreateRequest) (*exec, error) {
	if len(req.Cmd) == 0 {
		return nil, invalid("no exec command specified")
	}
	x := &exec{id: newID(), ctr: c, up: make(chan struct{}), req: req}
	e.mu.Lock()
	e.execs[x.id] = x
	e.mu.Unlock()
	time.AfterFunc(execKept, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if !x.started {
			e.dropExec(x)
		}
	})
	return x, nil
}

func (e *Engine) findExec(id string) (*exec, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, notFound("No such exec instance: %s", id)
}

func (e *Engine) emitExec(x *exec, a events.Action, extra map[string]string) {
	if x.ctr == nil {
		return
	}
	attrs := map[string]string{"execID": x.id}
	maps.Copy(attrs, extra)
	e.emitContainer(x.ctr, a, attrs)
}

// ExecCheck says whether an exec can be started, and whether it has a terminal.
func (e *Engine) ExecCheck(id string) (tty bool, err error) {
	x, err := e.findExec(id)
	if err != nil {
		return false, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.code != nil:
		return false, conflict("exec command %s has already run", id)
	case x.started:
		return false, conflict("exec command %s is already running", id)
	}
	if x.ctr != nil {
		x.ctr.mu.Lock()
		defer x.ctr.mu.Unlock()
		if x.ctr.run == nil {
			return false, conflict("container %s is not running", x.ctr.id)
		}
	}
	return x.req.Tty, nil
}

// ExecStart runs an exec. Detached it returns when the process runs; else it
// carries the process's streams and returns after its end. As in
// Attachment.Copy, an error from stdin other than io.EOF means that the client
// has left; the process goes on.
func (e *Engine) ExecStart(ctx context.Context, id string, o container.ExecStartRequest, stdin io.Reader, out func(Stream, []byte) error) error {
	if _, err := e.ExecCheck(id); err != nil {
		return err
	}
	x, err := e.findExec(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	if x.started {
		x.mu.Unlock()
		return conflict("exec command %s is already running", id)
	}
	x.started = true
	x.mu.Unlock()

	release := e.machine.Hold()
	s, err := e.beginExec(context.WithoutCancel(ctx), x, o)
	if err != nil && x.endedWith(ctx, err) {
		// As if it had begun in time to be killed with the others.
		release()
		e.emitExec(x, events.ActionExecStart+": "+events.Action(x.command()), nil)
		e.execEnded(x, 128+sigKILL)
		return nil
	}
	if err != nil {
		release()
		code := startExitCode(err)
		if code == 128 { // an exec's own word for what can't be started
			code = 126
		}
		x.end(code)
		e.expire(x)
		return startError("exec failed: ", err)
	}
	e.emitExec(x, events.ActionExecStart+": "+events.Action(x.command()), nil)
	exited := make(chan struct{})
	e.wg.Go(func() {
		defer release()
		defer close(exited)
		e.awaitExec(x)
	})
	if o.Detach {
		e.wg.Go(func() { s.pump(func(Stream, []byte) {}); s.close() })
		return nil
	}
	return e.carry(ctx, x, s, exited, stdin, out)
}

// beginExec has the guest start the process.
func (e *Engine) beginExec(ctx context.Context, x *exec, o container.ExecStartRequest) (*streams, error) {
	req := &proto.ExecRequest{Container: x.container(), Exec: x.id}
	var base *container.Config
	var host *container.HostConfig
	if x.ctr == nil {
		g, err := e.session(ctx)
		if err != nil {
			return nil, err
		}
		x.guest = g
	} else {
		x.ctr.mu.Lock()
		r := x.ctr.run
		base, host = x.ctr.rec.Config, x.ctr.rec.HostConfig
		x.ctr.mu.Unlock()
		if r == nil {
			return nil, conflict("container %s is not running", x.ctr.id)
		}
		base = withVariables(base, r.linkEnv)
		x.guest, x.run = r.guest, r
	}
	size := x.req.ConsoleSize
	if o.ConsoleSize != nil {
		size = o.ConsoleSize
	}
	if size != nil && x.req.Tty && size[0] > 0 && size[1] > 0 {
		req.Size = &proto.TerminalSize{Rows: uint32(size[0]), Columns: uint32(size[1])}
	}
	p, err := execProcess(x.req, base, host, e.cfg.Arch)
	if err != nil {
		return nil, err
	}
	if req.Process, err = json.Marshal(p); err != nil {
		return nil, err
	}
	req.Streams = &proto.Streams{Tty: x.req.Tty}
	if !o.Detach {
		req.Streams.Stdin, req.Streams.Stdout, req.Streams.Stderr = x.req.AttachStdin, x.req.AttachStdout, x.req.AttachStderr
	}
	return openStreams(ctx, x.guest, req.Container, x.id, req.Streams, func(ctx context.Context) error {
		resp, err := x.guest.Exec(ctx, req)
		x.mu.Lock()
		x.pid, x.running = int(resp.GetPid()), err == nil
		x.mu.Unlock()
		close(x.up)
		return err
	})
}

// execProcess is a pure function from an exec request to an OCI process. base
// and host are the container's; nil for the guest itself.
func execProcess(req container.ExecCreateRequest, base *container.Config, host *container.HostConfig, arch string) (*specs.Process, error) {
	p := &specs.Process{Terminal: req.Tty, Args: req.Cmd, Cwd: req.WorkingDir, User: specs.User{Username: req.User}}
	caps := allCaps
	if base != nil {
		var err error
		if caps, err = capabilities(host); err != nil {
			return nil, err
		}
		sec, err := parseSecurity(host.SecurityOpt)
		if err != nil {
			return nil, err
		}
		if req.Privileged {
			caps = allCaps
		}
		cfg := *base
		cfg.Tty = req.Tty
		p.Env = mergeEnv(environment(&cfg), req.Env)
		p.NoNewPrivileges = sec.noNewPrivileges
		p.OOMScoreAdj = &host.OomScoreAdj
		if p.User.Username == "" {
			p.User.Username = base.User
		}
		p.User = withGroups(p.User, host.GroupAdd)
		if p.Cwd == "" {
			p.Cwd = base.WorkingDir
		}
	} else {
		env := []string{defaultPath}
		if req.Tty {
			env = append(env, "TERM=xterm")
		}
		p.Env = mergeEnv(env, req.Env)
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !strings.HasPrefix(p.Cwd, "/") { // found when it is started, as with Docker
		return nil, errors.New("Cwd must be an absolute path") // in runc's words
	}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	return p, nil
}

// carry copies the streams of an exec until they end or the client leaves.
func (e *Engine) carry(ctx context.Context, x *exec, s *streams, exited <-chan struct{}, stdin io.Reader, out func(Stream, []byte) error) error {
	left := make(chan struct{})
	leave := sync.OnceFunc(func() { close(left) })
	stop := context.AfterFunc(ctx, leave)
	defer stop()
	if s.stdin != nil && x.req.AttachStdin {
		go func() {
			r := &tracked{r: stdin}
			s.feed(r)
			if r.err != nil && !errors.Is(r.err, io.EOF) {
				leave()
				e.emitExec(x, events.ActionExecDetach, nil)
			}
		}()
	}
	// out is called by one pump at a time, and no more once this has returned.
	var mu sync.Mutex
	var outErr error
	closed := false
	var chunks atomic.Int64 // counted before and after each is written: odd while it is
	drained := make(chan struct{})
	// Close does not wait for this: a client may take as long as it likes to
	// read. It ends with the connections.
	go func() {
		defer close(drained)
		s.pump(func(id Stream, p []byte) {
			mu.Lock()
			defer mu.Unlock()
			if closed || outErr != nil {
				return // the process's output is read on, or it would hang
			}
			chunks.Add(1)
			defer chunks.Add(1)
			if outErr = out(id, p); outErr != nil {
				leave()
			}
		})
		s.close()
	}()
	defer func() { mu.Lock(); closed = true; mu.Unlock() }()
	select {
	case <-left:
		return nil
	case <-drained:
		select {
		case <-exited:
		case <-left:
		}
		return nil
	case <-exited:
	}
	// A process that it left behind may hold the streams open: it ends when
	// nothing has come for a while. What a slow client has not read is no reason.
	t := time.NewTicker(drainTimeout)
	defer t.Stop()
	for seen := chunks.Load(); ; {
		select {
		case <-drained:
			return nil
		case <-left:
			return nil
		case <-t.C:
		}
		now := chunks.Load()
		if now == seen && now%2 == 0 {
			return nil
		}
		seen = now
	}
}

// awaitExec notes an exec's end.
func (e *Engine) awaitExec(x *exec) {
	code := exitLost
	resp, err := x.guest.Wait(context.Background(), &proto.ProcessRequest{Container: x.container(), Exec: x.id})
	if err == nil {
		code = int(resp.ExitCode)
	}
	e.execEnded(x, code)
}

// execEnded notes and tells that an exec has ended.
func (e *Engine) execEnded(x *exec, code int) {
	x.end(code)
	e.emitExec(x, events.ActionExecDie, map[string]string{"exitCode": strconv.Itoa(code)})
	e.expire(x)
}

// endedWith says whether an exec could not be started because the container was
// about to end, and waits for that.
func (x *exec) endedWith(ctx context.Context, err error) bool {
	if x.run == nil || status.Code(err) != codes.Unavailable {
		return false
	}
	t := time.NewTimer(lossTimeout)
	defer t.Stop()
	select {
	case <-x.run.ended:
		return true
	case <-t.C: // it was something else, like a guest without memory
	case <-ctx.Done():
	}
	return false
}

func (x *exec) end(code int) {
	x.mu.Lock()
	x.running, x.pid, x.code = false, 0, &code
	x.mu.Unlock()
}

// expire forgets an ended exec after a while.
func (e *Engine) expire(x *exec) {
	time.AfterFunc(execKept, func() { e.dropExec(x) })
}

func (e *Engine) dropExec(x *exec) {
	e.mu.Lock()
	delete(e.execs, x.id)
	e.mu.Unlock()
}

// ExecInspect describes an exec.
func (e *Engine) ExecInspect(id string) (container.ExecInspectResponse, error) {
	x, err := e.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	privileged := x.req.Privileged
	return container.ExecInspectResponse{
		ID: x.id, Running: x.running, ExitCode: x.code, Pid: x.pid,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.req.Tty, Entrypoint: x.req.Cmd[0], Arguments: x.req.Cmd[1:],
			Privileged: &privileged, User: x.req.User,
		},
		OpenStdin: x.req.AttachStdin, OpenStdout: x.req.AttachStdout, OpenStderr: x.req.AttachStderr,
		CanRemove: x.code != nil, ContainerID: x.container(), DetachKeys: []byte(x.req.DetachKeys),
	}, nil
}

// ExecDetachKeys are those that were given to ExecCreate.
func (e *Engine) ExecDetachKeys(id string) string {
	x, err := e.findExec(id)
	if err != nil {
		return ""
	}
	return x.req.DetachKeys
}

// ExecResize sets the size of an exec's terminal.
func (e *Engine) ExecResize(ctx context.Context, id string, rows, columns uint32) error {
	x, err := e.findExec(id)
	if err != nil {
		return err
	}
	// Clients send the size together with the start; dockerd waits as long
	// (ContainerExecResize in its daemon/resize.go).
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-x.up:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	x.mu.Lock()
	g, running := x.guest, x.running
	x.mu.Unlock()
	if !running {
		return conflict("exec process is not started")
	}
	_, err = g.Resize(ctx, &proto.ResizeRequest{Container: x.container(), Exec: x.id, Size: &proto.TerminalSize{Rows: rows, Columns: columns}})
	if err != nil {
		return fmt.Errorf("resize exec %s: %s", id, message(err))
	}
	return nil
}
