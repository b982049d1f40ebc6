package stage2

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// create makes the container around this process, and becomes its program; or,
// where the container is in another's pid namespace, forks it into there.
func create(plan *Plan, c control) error {
	root, p := plan.Root, &plan.Process
	unix.Umask(0)
	if err := join(plan.Join); err != nil {
		return err
	}
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("become session leader: %w", err)
	}
	if root.NewNetNS {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if root.NewCgroupNS {
		// Not by clone's flags: the namespace's root would be the agent's cgroup.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make cgroup namespace: %w", err)
		}
	}
	proc, err := enterRoot(root, plan.PidFD)
	if err != nil {
		return err
	}
	if err := setNames(root); err != nil {
		return err
	}
	t, err := openTerminal(p)
	if err != nil {
		return err
	}
	if t != nil {
		if err := t.bindConsole(); err != nil {
			return err
		}
	}
	if err := c.await("network"); err != nil {
		return err
	}
	if err := writeSysctls(proc, root.Sysctls); err != nil {
		return err
	}
	unix.Close(proc) // nobody else is to find it
	if err := makeCwd(p.Cwd); err != nil {
		return err
	}
	if err := finishRoot(root); err != nil {
		return err
	}
	pr, err := prepare(p, t)
	if err != nil {
		return err
	}
	if err := c.send(Message{Kind: "ready"}, t.masterFD()); err != nil {
		return err
	}
	t.closeMaster()
	start, fds, err := c.receive("start")
	if err != nil {
		return err
	}
	if err := pr.lookUp(p); err != nil {
		return err
	}
	if start.Pids != "" {
		if len(fds) != 1 {
			return fmt.Errorf("limit of processes with %d files to write it to", len(fds))
		}
		pr.limitProcesses(fds[0], start.Pids)
	}
	if plan.PidFD != 0 {
		pr.leaveStage2()
	}
	if t != nil {
		pr.controllingTerminal()
	}
	if err := pr.finish(p); err != nil {
		return err
	}
	if plan.PidFD == 0 {
		return pr.run()
	}
	return pr.forkInto(plan.PidFD, 0, c)
}

// join enters namespaces of others with this thread.
func join(list []Namespace) error {
	for _, ns := range list {
		if ns.Flags&unix.CLONE_NEWNS != 0 {
			// A thread joins a mount namespace only when it shares its working
			// directory with no other.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave the other threads' working directory: %w", err)
			}
		}
		if err := unix.Setns(ns.FD, ns.Flags); err != nil {
			return ended(err, fmt.Errorf("join namespaces %#x: %w", ns.Flags, err))
		}
	}
	return nil
}

func setNames(root *Root) error {
	if root.Hostname != "" {
		if err := unix.Sethostname([]byte(root.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", root.Hostname, err)
		}
	}
	if root.Domain != "" {
		if err := unix.Setdomainname([]byte(root.Domain)); err != nil {
			return fmt.Errorf("set domain name %q: %w", root.Domain, err)
		}
	}
	return nil
}

// loopbackUp brings lo up in a new network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
