package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

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
}

// Create makes a container: its cgroup, its namespaces and its first process,
// which waits for Process.Start. After an error nothing is left. Cancelling
// ctx makes Create give up, and has no effect once it has returned.
//
// Names that are missing or wrong in the image (user, working directory) are
// errors here; a missing executable is one of Start.
func (r *Runtime) Create(ctx context.Context, cfg Config, stdio Stdio) (*Container, error) {
	c := &Container{r: r, id: cfg.ID, rootfs: cfg.Rootfs, spec: cfg.Spec}
	plan, flags, extra, err := r.createPlan(cfg, stdio)
	defer closeFiles(extra)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	if c.cgroup, err = r.newCgroup(cfg.Cgroup, cfg.Spec.Linux.Resources); err != nil {
		return nil, fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	c.first, err = r.createFirst(ctx, c.cgroup, cfg, plan, flags, extra, stdio)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return nil, errors.Join(err, c.Destroy(ctx))
	}
	return c, nil
}

// createFirst starts stage 2 in a new container, and waits until it's ready.
func (r *Runtime) createFirst(ctx context.Context, cg *cgroup, cfg Config, plan *stage2.Plan, flags uintptr, extra []*os.File, stdio Stdio) (*Process, error) {
	dir, err := cg.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	s, err := r.launch(plan, stdio, extra, &syscall.SysProcAttr{
		Cloneflags: flags, UseCgroupFD: true, CgroupFD: int(dir.Fd()),
	})
	if err != nil {
		return nil, err
	}
	stop := s.during(ctx)
	defer stop()
	p := &Process{r: r, stage: s, child: s.child, cgroup: cg}
	if cfg.NetNS != nil && flags&unix.CLONE_NEWNET != 0 {
		if err := cfg.NetNS(s.child.pid); err != nil {
			s.kill()
			return nil, fmt.Errorf("set up network: %w", err)
		}
	}
	err = s.send("network")
	if err == nil || ctx.Err() != nil {
		err = p.ready()
	} else if reason := p.ready(); reason != nil {
		err = reason // why it wasn't there to hear
	}
	if err != nil {
		s.kill()
		return nil, errors.Join(ctx.Err(), err)
	}
	return p, nil
}

// createPlan is what stage 2 does for a new container, with the flags to clone
// it with and the descriptors that the plan names, which the caller closes.
func (r *Runtime) createPlan(cfg Config, stdio Stdio) (plan *stage2.Plan, flags uintptr, extra []*os.File, err error) {
	spec := cfg.Spec
	if spec == nil || spec.Process == nil || spec.Linux == nil {
		return nil, 0, nil, errors.New("spec without process or linux")
	}
	plan = new(stage2.Plan)
	if plan.Root, err = rootPlan(spec, cfg.Rootfs); err != nil {
		return nil, 0, nil, err
	}
	files, err := readUserFiles(cfg.Rootfs)
	if err != nil {
		return nil, 0, nil, err
	}
	if plan.Process, err = r.process(spec.Process, spec.Linux.Seccomp, files, stdio); err != nil {
		return nil, 0, nil, err
	}
	flags, extra, err = namespacePlan(spec.Linux.Namespaces, plan)
	if err == nil && cfg.Init {
		var f *os.File
		f, err = os.Open(r.opts.Stage2)
		if err == nil {
			plan.Process.InitFD = stage2.FirstFD + len(extra)
			extra = append(extra, f)
		}
	}
	return plan, flags, extra, err
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
func namespacePlan(list []specs.LinuxNamespace, plan *stage2.Plan) (flags uintptr, extra []*os.File, err error) {
	flags = unix.CLONE_NEWNS
	for _, ns := range list {
		flag, ok := cloneFlags[ns.Type]
		switch {
		case !ok:
			return 0, extra, fmt.Errorf("%s namespace: %w", ns.Type, errors.ErrUnsupported)
		case ns.Path == "" && flag == unix.CLONE_NEWCGROUP:
			plan.Root.NewCgroupNS = true
		case ns.Path == "":
			flags |= flag
		case flag == unix.CLONE_NEWPID || flag == unix.CLONE_NEWNS:
			return 0, extra, fmt.Errorf("join %s namespace %s: %w", ns.Type, ns.Path, errors.ErrUnsupported)
		default:
			f, err := os.Open(ns.Path)
			if err != nil {
				return 0, extra, fmt.Errorf("join %s namespace: %w", ns.Type, err)
			}
			plan.Join = append(plan.Join, stage2.Namespace{FD: stage2.FirstFD + len(extra), Flags: int(flag)})
			extra = append(extra, f)
		}
	}
	plan.Root.NewNetNS = flags&unix.CLONE_NEWNET != 0
	return flags, extra, nil
}

// process is the plan of a process, with its seccomp filter and streams.
func (r *Runtime) process(p *specs.Process, filter *specs.LinuxSeccomp, files userFiles, stdio Stdio) (stage2.Process, error) {
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

// SignalAll sends a signal to every process of the container.
func (c *Container) SignalAll(sig int) error { return c.cgroup.signal(sig) }

// Destroy kills what is left of the container and removes its cgroup. The
// mounts of its namespace are gone when Destroy returns. Idempotent. Cancelling
// ctx makes it give up waiting for the kernel.
func (c *Container) Destroy(ctx context.Context) error {
	if err := c.cgroup.destroy(ctx); err != nil {
		return fmt.Errorf("destroy container %s: %w", c.id, err)
	}
	if c.first == nil {
		return nil
	}
	select {
	case <-c.first.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("destroy container %s: wait for its first process: %w", c.id, ctx.Err())
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
