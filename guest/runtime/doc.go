// Package runtime turns an OCI runtime-spec into running processes.
//
// It is the container runtime of the guest's PID 1, and runs inside it: there
// is no daemon and no state on disk. A process comes to life in two steps.
// Create and Exec do everything that can be prepared; Start lets the process
// go, and returns once it has been executed or with the reason why not.
//
//	agent (PID 1)              stage 2                           container
//	  Create ── clone3 ────────► new namespaces, cgroup
//	  Prepare, NetNS(pid)
//	     │ ─────── plan ───────► mounts, pivot
//	     │ ────── network ─────► sysctls
//	     │ ◄─────── ready ─────
//	  Start ───── start ───────► rlimits … seccomp ── execve ──► process
//	     │ ◄─── end of file, or the error
//
//	  Exec ──── clone3 ────────►
//	     │ ─────── plan ───────► joins all but the pid namespace
//	     │ ◄─────── ready ─────    and the cgroup
//	  Start ───── start ───────► fork ─────────────────────────► rlimits …
//	     │ ◄─── pid, or error ──  exits                          seccomp, execve
//
// Everything before "plan" is the same for every container and every exec, and
// takes half of the time: Reserve has it done beforehand, once for the next
// Create and once for the next Exec. A stage 2 in reserve has copies of the
// mounts that were there when it was cloned. It lets go of them, so that none
// lives longer for it, and sees no later ones: roots and binds reach stage 2 as
// descriptors.
//
// Stage 2 is a fresh process image. What enters a container's namespaces must
// share neither memory nor descriptors with the agent, since a container with
// CAP_SYS_PTRACE can look at all of its processes, dumpable or not:
//
//   - Create's stage 2 is the first process of a new pid namespace, where
//     nobody else can look, until it executes the container's program.
//
//   - Exec's stage 2 stays in the agent's pid namespace. Only its fork enters
//     the container's, with the container's root already, a few system calls
//     away from execve. What it has open until the first of them, besides the
//     process's own streams, leads nowhere (see cgroup.openForExec).
//     Starting stage 2 directly in the pid namespace would be simpler, but
//     would show the container the agent's memory (Go clones with CLONE_VM)
//     and then, as /proc/PID/root, the agent's root.
//
//   - Create's stage 2 for a container in another's pid namespace is as an
//     exec's: it makes the root out here, and its fork becomes the program. A
//     fork before that mounts /proc.
//
// The fork asks for CLONE_PARENT, so that every process of a container that
// this package starts is a child of the agent. Orphans are not: they go to
// the container's own PID 1, or to the agent where the container shares its
// pid namespace. See Children for how reaping is shared.
//
// Stage 2 is sampan-stage2 (the command beside this package) rather than the
// agent's own binary: it's a third of the size and has little to initialize,
// which saves about 12 ms a process under TCG. It is the small init as well, and
// linked with an entry of its own for that: see stage2.
//
// pivot_root can't leave the kernel's first root (the initramfs): PID 1 must
// have moved itself to a bind mount of it, or to another file system.
//
// Calls may come from several goroutines.
package runtime
