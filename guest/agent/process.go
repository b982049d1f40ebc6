package agent

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"sampan/guest/runtime"
	"sampan/proto"
)

// keptExecs is how many ended processes a container remembers for Wait. A
// health check runs thousands a day.
const keptExecs = 256

// handle is a running process: a *runtime.Process, or one of the guest itself.
type handle interface {
	Pid() int
	Wait(context.Context) (runtime.ExitStatus, error)
	Signal(sig int) error
	Resize(rows, columns uint16) error
}

// process is one between Start or Exec and the end of Wait's interest.
type process struct {
	done chan struct{} // closed when it has ended, or was never started

	mu     sync.Mutex
	handle handle // nil until it runs
	exit   *proto.WaitResponse
	err    error // why there is no exit
}

func newProcess() *process { return &process{done: make(chan struct{})} }

// started says that the process runs.
func (p *process) started(h handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = h
}

// ended says how the process ended.
func (p *process) ended(st runtime.ExitStatus, oom bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit = &proto.WaitResponse{ExitCode: int32(st.Code), ExitedUnixNano: time.Now().UnixNano(), OomKilled: oom}
	p.err = err
	close(p.done)
}

// failed says that the process was never started.
func (p *process) failed(err error) { p.ended(runtime.ExitStatus{}, false, err) }

// running returns the process's handle while it runs, else nil.
func (p *process) running() handle {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return nil
	default:
		return p.handle
	}
}

func (p *process) wait(ctx context.Context) (*proto.WaitResponse, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, failed("wait", ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, failed("wait", p.err)
	}
	return p.exit, nil
}

// processes are those of one container, by exec ID.
type processes struct {
	mu    sync.Mutex
	all   map[string]*process
	ended []string // exec IDs, oldest first
}

func newProcesses() *processes { return &processes{all: map[string]*process{}} }

// add reserves an exec ID for a process to be started.
func (ps *processes) add(exec string) (*process, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if _, ok := ps.all[exec]; ok {
		return nil, errorf(codes.AlreadyExists, "exec %s exists already", exec)
	}
	p := newProcess()
	ps.all[exec] = p
	return p, nil
}

// drop forgets a process that could not be started.
func (ps *processes) drop(exec string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.all, exec)
}

// retire remembers an ended process for a while.
func (ps *processes) retire(exec string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.ended = append(ps.ended, exec)
	if len(ps.ended) > keptExecs {
		delete(ps.all, ps.ended[0])
		ps.ended = ps.ended[1:]
	}
}

func (ps *processes) get(exec string) *process {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.all[exec]
}

// signal sends a signal to all that run.
func (ps *processes) signal(sig int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if h := p.running(); h != nil {
			h.Signal(sig) // it may have just ended
		}
	}
}
