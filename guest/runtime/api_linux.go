package runtime

import (
	"errors"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ErrNotFound is wrapped by the error of a process whose executable doesn't
// exist (exit code 127 in Docker's terms).
var ErrNotFound = errors.New("executable not found")

// ErrNotExecutable is wrapped by the error of a process whose executable can't
// be executed (exit code 126).
var ErrNotExecutable = errors.New("not executable")

// ErrNotRunning is wrapped by errors about a process that has ended, or a
// container whose first process has not been started or has ended.
var ErrNotRunning = errors.New("not running")

// Config describes a container.
type Config struct {
	// ID is for error messages. Required.
	ID string
	// Spec is the OCI configuration. Required. Root.Path and Hooks are ignored;
	// a Process.User.Username "user[:group]" is looked up in the rootfs, and so
	// are additional groups that follow it, each on its own line;
	// every mount must be one that the kernel knows (no "host", no "volume").
	Spec *specs.Spec
	// Seccomp is the spec's Linux.Seccomp as JSON, and goes before it. Given so, a
	// filter that another container has had is not read again. Optional.
	Seccomp []byte
	// Rootfs is the mounted root. Required. The caller unmounts it, after
	// Destroy.
	Rootfs string
	// Prepare is called once in Create: it mounts Rootfs, and completes what the
	// spec says of the mounts and the process. Optional.
	Prepare func() error
	// NetNS is called in Create, in a goroutine beside Prepare and the making of
	// the root, with the first process, whose network namespace,
	// /proc/PID/ns/net, is new; its loopback interface is brought up by the
	// process. It is called again when that process dies before it has become
	// the container's. Optional; not called when the spec has no network
	// namespace or joins one by path.
	NetNS func(pid int) error
	// Init runs the process under a small init that forwards signals and
	// reaps (docker run --init).
	Init bool
}

// Stdio is a process's standard streams: the process's own ends. Create and
// Exec don't close them; the caller does, when they have returned. Nil is
// /dev/null.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	// Rows and Columns are the initial size of the terminal, for a process that
	// has one (specs.Process.Terminal; the files are then ignored). Optional.
	Rows, Columns uint16
}

// ExitStatus tells how a process ended.
type ExitStatus struct {
	// Code is 0 to 255; 128+n when signal n ended the process.
	Code int
	// Signal that ended the process, or 0.
	Signal int
}
