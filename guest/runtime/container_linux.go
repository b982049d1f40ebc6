package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// Container is a container that Create has made.
type Container struct {
	r      *Runtime
	id     string
	rootfs string
	spec   *specs.Spec
	cgroup *cgroup
	first  *Process
	// seccomp is the filter's source, for Exec.
	seccomp []byte
}

// Create makes a container: its cgroup, its namespaces and its first process,
// which waits for Process.Start. After an error nothing is left. Cancelling
// ctx makes Create give up, and has no effect once it has returned.
//
// Names that are missing or wrong in the image (user, working directory) are
// errors here; a missing executable is one of Start.
func (r *Runtime) Create(ctx context.Context, cfg Config, stdio Stdio) (*Container, error) {
	if cfg.Spec == nil || cfg.Spec.Process == nil || cfg.Spec.Linux == nil {
		return nil, fmt.Errorf("container %s: spec without process or linux", cfg.ID)
	}
	if filter := cfg.Spec.Linux.Seccomp; filter != nil && cfg.Seccomp == nil {
		var err error
		if cfg.Seccomp, err = json.Marshal(filter); err != nil {
			return nil, fmt.Errorf("container %s: seccomp: %w", cfg.ID, err)
		}
	}
	c := &Container{r: r, id: cfg.ID, rootfs: cfg.Rootfs, spec: cfg.Spec, seccomp: cfg.Seccomp}
	s, network, err := r.createShell(cfg, stdio)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	c.cgroup = s.cgroup
	c.first = &Process{r: r, stage: s.stage, child: s.stage.child, cgroup: s.cgroup}
	if s.forks {
		c.first.child, c.first.ended = nil, make(chan struct{})
	}
	settings, err := cgroupSettings(cfg.Spec.Linux.Resources)
	if err == nil {
		err = s.cgroup.configure(settings, &r.devices, cfg.Spec.Linux.Resources)
	}
	if netErr := network(); err == nil && netErr != nil {
		err = fmt.Errorf("set up network: %w", netErr)
		if s.stage.ended() {
			err = c.first.ready() // why there was no process to give a network
		}
	}
	if err == nil {
		err = c.first.create(ctx)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return nil, errors.Join(err, c.Destroy(ctx))
	}
	return c, nil
}

// createShell is a stage 2 that was given its plan, with what waits for its
// network. What can be done beside each other is: the network needs nothing but
// the process, the plan needs the root.
func (r *Runtime) createShell(cfg Config, stdio Stdio) (s *shell, network func() error, err error) {
	var extra descriptors
	defer extra.close()
	plan := &stage2.Plan{Root: new(stage2.Root)}
	flags, err := namespacePlan(cfg.Spec.Linux.Namespaces, plan, &extra)
	if err != nil {
		return nil, nil, err
	}
	s, reserved, err := r.shellFor(flags)
	if err != nil {
		return nil, nil, err
	}
	network = cfg.network(s, flags)
	if cfg.Prepare != nil {
		err = cfg.Prepare()
	}
	if err == nil {
		err = r.createPlan(plan, cfg, stdio, &extra)
	}
	if err != nil {
		_ = network() // of no interest without a container
		return nil, nil, errors.Join(err, s.discard())
	}
	give := func(s *stage) error { return s.give(plan, stdio, extra.files) }
	given, err := r.given(s, reserved, flags, give)
	if given != s {
		_ = network() // failed with the process
	}
	if err != nil {
		return nil, nil, err
	}
	given.forks = plan.PidFD != 0
	if given != s {
		network = cfg.network(given, flags)
	}
	return given, network, nil
}

// network begins to set up a process's network. The result waits for the end of
// that; it may be called often.
func (cfg Config) network(s *shell, flags uintptr) func() error {
	if cfg.NetNS == nil || flags&unix.CLONE_NEWNET == 0 {
		return func() error { return nil }
	}
	wait := sync.OnceValue(func() error { return cfg.NetNS(s.stage.child.pid) })
	go wait()
	return wait
}

// create sees stage 2 through the making of the container, until it's ready.
func (p *Process) create(ctx context.Context) error {
	stop := p.stage.during(ctx)
	defer stop()
	err := p.stage.send("network")
	if err == nil || ctx.Err() != nil {
		err = p.ready()
	} else if reason := p.ready(); reason != nil {
		err = reason // why it wasn't there to hear
	}
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// createPlan completes the plan of what stage 2 does for a new container. What
// it names is added to extra.
func (r *Runtime) createPlan(plan *stage2.Plan, cfg Config, stdio Stdio, extra *descriptors) error {
	spec := cfg.Spec
	if err := rootPlan(plan.Root, spec); err != nil {
		return err
	}
	if err := openTrees(plan.Root, cfg.Rootfs, extra); err != nil {
		return err
	}
	files, err := readUserFiles(cfg.Rootfs)
	if err != nil {
		return err
	}
	if plan.Process, err = r.process(spec.Process, cfg.Seccomp, files, stdio); err != nil {
		return err
	}
	if cfg.Init && plan.PidFD != 0 {
		return errors.New("an init in the pid namespace of another container")
	}
	if cfg.Init {
		f, err := os.Open(r.opts.Stage2)
		if err != nil {
			return err
		}
		plan.Process.InitFD = extra.add(f)
	}
	return nil
}

// openTrees opens what comes from the outside: the root and the binds' sources.
func openTrees(root *stage2.Root, rootfs string, extra *descriptors) error {
	var err error
	if root.FD, err = extra.tree(rootfs, true); err != nil {
		return fmt.Errorf("open root %s: %w", rootfs, err)
	}
	for i := range root.Mounts {
		m := &root.Mounts[i]
		if m.Type != "" {
			continue
		}
		if m.FD, err = extra.tree(m.Source, m.Recursive); err != nil {
			return fmt.Errorf("mount %s: open source %s: %w", m.Dest, m.Source, err)
		}
	}
	return nil
}

// cloneFlags of the namespaces that a spec can ask for. The mount namespace is
// always new, and the cgroup namespace made by stage 2.
var cloneFlags = map[specs.LinuxNamespaceType]uintptr{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
}

// namespacePlan tells which namespaces are cloned, and puts those to join and
// those that stage 2 makes into the plan.
func namespacePlan(list []specs.LinuxNamespace, plan *stage2.Plan, extra *descriptors) (flags uintptr, err error) {
	flags = unix.CLONE_NEWNS
	for _, ns := range list {
		flag, ok := cloneFlags[ns.Type]
		switch {
		case !ok:
			return 0, fmt.Errorf("%s namespace: %w", ns.Type, errors.ErrUnsupported)
		case ns.Path == "" && flag == unix.CLONE_NEWCGROUP:
			plan.Root.NewCgroupNS = true
		case ns.Path == "":
			flags |= flag
		case flag == unix.CLONE_NEWNS:
			return 0, fmt.Errorf("join %s namespace %s: %w", ns.Type, ns.Path, errors.ErrUnsupported)
		default:
			f, err := os.Open(ns.Path)
			if err != nil {
				return 0, fmt.Errorf("join %s namespace: %w", ns.Type, err)
			}
			if flag == unix.CLONE_NEWPID {
				plan.PidFD = extra.add(f)
				continue
			}
			plan.Join = append(plan.Join, stage2.Namespace{FD: extra.add(f), Flags: int(flag)})
		}
	}
	plan.Root.NewNetNS = flags&unix.CLONE_NEWNET != 0
	return flags, nil
}

// process is the plan of a process, with its seccomp filter, given as JSON, and
// streams.
func (r *Runtime) process(p *specs.Process, filter []byte, files userFiles, stdio Stdio) (stage2.Process, error) {
	plan, err := processPlan(p, r.lastCap, files)
	if err != nil {
		return plan, err
	}
	plan.Rows, plan.Columns, plan.Null = stdio.Rows, stdio.Columns, stdio.null()
	if size := p.ConsoleSize; size != nil && plan.Rows == 0 && plan.Columns == 0 {
		plan.Rows, plan.Columns = uint16(size.Height), uint16(size.Width)
	}
	plan.Seccomp, plan.SeccompFlags, err = r.filters.compile(filter)
	return plan, err
}

// Process is the container's first process.
func (c *Container) Process() *Process { return c.first }

// OOMKilled tells whether the kernel has killed a process of the container
// because the container's memory was used up. Valid until Destroy.
func (c *Container) OOMKilled() bool { return c.cgroup.oomKilled() }

// Cgroup is the path of the container's cgroup.
func (c *Container) Cgroup() string { return c.cgroup.path }

// SignalAll sends a signal to every process of the container.
func (c *Container) SignalAll(sig int) error { return c.cgroup.signal(sig) }

// Destroy kills what is left of the container and removes its cgroup. The
// mounts of its namespace are gone when Destroy returns. Idempotent. Cancelling
// ctx makes it give up waiting for the kernel.
func (c *Container) Destroy(ctx context.Context) error {
	if err := c.first.Kill(); err != nil {
		return fmt.Errorf("destroy container %s: %w", c.id, err)
	}
	if err := c.cgroup.destroy(ctx); err != nil {
		return fmt.Errorf("destroy container %s: %w", c.id, err)
	}
	select {
	case <-c.first.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("destroy container %s: wait for its first process: %w", c.id, ctx.Err())
	}
}
