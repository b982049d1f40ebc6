package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"sampan/vm"
)

// attempt boots once, with one accelerator. On failure nothing is left of it,
// and the error is a *vm.BootError.
func (d *Driver) attempt(ctx context.Context, cfg vm.Config, path string, b board, pick choice) (*machine, error) {
	if err := awaitDisks(ctx, cfg.Disks); err != nil {
		return nil, &vm.BootError{Stage: "process", Err: err}
	}
	if cfg.Ready != nil && b.copies {
		if err := cfg.Ready(); err != nil {
			return nil, &vm.BootError{Stage: "process", Err: &notReadyError{err}}
		}
		cfg.Ready = nil
	}
	m, w, err := d.launch(cfg, path, b, pick)
	if err != nil {
		return nil, &vm.BootError{Stage: "process", Err: err}
	}

	limit := cmp.Or(d.processLimit, processLimit)
	stage, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("QEMU gave no sign of life in %s", limit))
	defer cancel()
	mon, v, err := newMonitor(stage, w.qmpConn, m.event)
	if err != nil {
		return nil, m.abandon(ctx, "process", path, b, err)
	}
	m.mon = mon
	if v.tooOld() {
		return nil, m.abandon(ctx, "process", path, b, tooOldError(path, b, v))
	}
	m.describe = fmt.Sprintf("QEMU %s, %s", v, pick)
	cfg.Stage("process")
	if cfg.Ready != nil {
		if err := cfg.Ready(); err != nil {
			m.proc.kill() // it waits for us
			m.supervise()
			return nil, &vm.BootError{Stage: "kernel", Err: &notReadyError{err}}
		}
	}

	limit = kernelLimitTCG
	if pick.accelerator == kvm {
		limit = kernelLimitKVM
	}
	limit = cmp.Or(d.kernelLimit, limit)
	stage, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("the console stayed silent for %s", limit))
	defer cancel()
	if cfg.Ready != nil {
		if _, err := mon.execute(stage, "cont"); err != nil {
			return nil, m.abandon(ctx, "kernel", path, b, err)
		}
	}
	select {
	case <-m.console.first:
	case <-m.proc.done:
		return nil, m.abandon(ctx, "kernel", path, b, errors.New("QEMU ended"))
	case <-stage.Done():
		return nil, m.abandon(ctx, "kernel", path, b, context.Cause(stage))
	}
	cfg.Stage("kernel")
	go m.supervise()
	return m, nil
}

// notReadyError is one of Config.Ready: another accelerator would not help.
type notReadyError struct{ err error }

func (e *notReadyError) Error() string { return e.err.Error() }
func (e *notReadyError) Unwrap() error { return e.err }

// launch starts QEMU and serves its devices and console.
func (d *Driver) launch(cfg vm.Config, path string, b board, pick choice) (*machine, *wiring, error) {
	counter := readClocks()
	w, err := newWiring(cfg)
	if err != nil {
		return nil, nil, err
	}
	log := d.logger(cfg)
	vsock, backends, err := devices(cfg, w, log)
	if err != nil {
		w.closeTheirs(cfg)
		w.closeOurs()
		return nil, nil, err
	}
	proc, err := startProcess(path, append(argv(cfg, b, pick.accelerator, counter.hertz(), w.wires), d.Extra...), w.files)
	w.closeTheirs(cfg)
	if err != nil {
		vsock.Close()
		w.closeOurs()
		return nil, nil, err
	}
	m := &machine{
		proc:    proc,
		vsock:   vsock,
		console: &console{first: make(chan struct{})},
		log:     log,
		done:    make(chan struct{}),
	}
	for _, b := range backends {
		m.serve(b)
	}
	m.serving.Go(func() { m.console.run(w.consConn, cfg.Console) })
	return m, w, nil
}

// abandon ends a machine that did not reach a stage, and says why: by QEMU's
// own words where it had any.
func (m *machine) abandon(ctx context.Context, stage, path string, b board, err error) error {
	byItself := false
	if ctx.Err() == nil {
		select { // its sockets may end a little earlier than QEMU itself
		case <-m.proc.done:
			byItself = true
		case <-time.After(exitLag):
		}
	}
	m.proc.kill()
	m.supervise()
	if byItself {
		err = m.lastWords(path, b)
	}
	return &vm.BootError{Stage: stage, Console: m.console.tail.String(), Err: err}
}

const exitLag = time.Second

// lastWords explains why QEMU ended by itself before the boot was done.
func (m *machine) lastWords(path string, b board) error {
	m.mu.Lock()
	broken, reason := m.broken, m.reason
	m.mu.Unlock()
	if broken != nil {
		return broken
	}
	// A QEMU of old ends with a complaint about one of our options.
	if v, err := programVersion(path); err == nil && v.tooOld() {
		return tooOldError(path, b, v)
	}
	if m.proc.err == nil {
		return fmt.Errorf("QEMU ended (%s) %s", cmp.Or(reason, "unasked"), m.proc.output)
	}
	return fmt.Errorf("QEMU failed: %w: %s", m.proc.err, m.proc.output)
}

func tooOldError(path string, b board, v version) error {
	return fmt.Errorf("%s is QEMU %s; 7.2 or newer is needed: apt install %s from a newer release", path, v, b.pkg)
}

// programVersion asks the program itself.
func programVersion(path string) (version, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return version{}, fmt.Errorf("run %s --version: %w", path, err)
	}
	return parseVersion(string(out))
}

// parseVersion reads what --version prints: "QEMU emulator version 7.2.22 (…".
func parseVersion(text string) (version, error) {
	f := regexp.MustCompile(`^QEMU emulator version (\d{1,4})\.(\d{1,4})\.(\d{1,4})`).FindStringSubmatch(text)
	if f == nil {
		return version{}, fmt.Errorf("no QEMU version in %.60q", text)
	}
	var v version
	for i, part := range []*int{&v.Major, &v.Minor, &v.Micro} {
		*part, _ = strconv.Atoi(f[i+1]) // digits, by the pattern
	}
	return v, nil
}
