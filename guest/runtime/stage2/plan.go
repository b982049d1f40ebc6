// Package stage2 is what runs between clone and execve of a container's
// process: a fresh process image that carries out a Plan.
//
// The plan is computed by package runtime; nothing is decided here but what
// only the container's own file system can tell. The package imports little,
// so that an executable made of it starts fast.
//
// Stage 2 may have been started before anybody knew what for (package runtime
// keeps one in reserve), so it is told everything on its control socket
// (SOCK_SEQPACKET, one Message a packet). The message "plan" brings the
// descriptors of the plan (a sealed memfd), of those of the process's streams
// that are neither null nor a terminal, and of what the plan names, in this
// order.
//
// Everything after the threads' namespaces and credentials start to differ
// happens in one locked thread, which then executes the program: execve from
// any thread of a group makes it the whole process. What's set by raw system
// calls there (credentials, seccomp, umask after unshare) never spreads to the
// Go runtime's other threads, and need not.
package stage2

// Name is argv[0] of stage 2.
const Name = "sampan-stage2"

// InitName is argv[0] of the small init (docker run --init).
const InitName = "sampan-init"

// Descriptors of stage 2. Standard streams are /dev/null at first, and so is
// reportFD, which keeps the number until an exec's fork reports there.
const (
	reportFD  = 3
	ControlFD = 4
)

// Plan is what stage 2 does, in the order of its fields. Descriptors (FD) are
// counted, from 1, in the order in which they come with it; 0 is none.
type Plan struct {
	// Join, by descriptor: the namespaces of a running container (exec), or
	// those that the spec names by path (create).
	Join []Namespace

	// Root is what Create's stage 2 makes; nil for an exec.
	Root *Root

	// PidFD, for an exec, is the container's first process, whose pid and
	// cgroup namespaces the process joins, and CgroupFD its cgroup. For a new
	// container it's the pid namespace that it shares with another one.
	PidFD, CgroupFD int

	Process Process
}

// Namespace is one to join.
type Namespace struct {
	FD    int
	Flags int // CLONE_NEW*; several for a pidfd
}

// Root is how the container looks from inside.
type Root struct {
	FD          int    // the root, a detached tree of mounts
	Propagation uint64 // MS_SLAVE, …; 0 is MS_PRIVATE
	ReadOnly    bool

	NewCgroupNS bool
	NewNetNS    bool

	Mounts    []Mount
	Devices   []Device
	DevLinks  bool // the default links and nodes in /dev
	Hostname  string
	Domain    string
	Sysctls   []Sysctl
	Masked    []string
	ReadPaths []string // made read-only
}

// Mount is one line of the mount table. With an empty Type it's a bind.
type Mount struct {
	Dest    string
	Type    string
	Source  string
	FD      int      // a bind's source, a detached tree of mounts
	Options []string // "key" or "key=value", for the file system

	// MOUNT_ATTR_* to set and clear, on the mount and on the whole tree.
	Set, Clear       uint64
	RecSet, RecClear uint64

	Recursive   bool   // rbind
	Propagation uint64 // MS_PRIVATE, …
	PropRec     bool   // for the whole tree
}

// Device is a node to make.
type Device struct {
	Path         string
	Mode         uint32 // with S_IFCHR, S_IFBLK or S_IFIFO
	Major, Minor uint32
	UID, GID     uint32
}

// Sysctl is a kernel parameter, by its path below /proc/sys.
type Sysctl struct{ Path, Value string }

// Process is what is executed.
type Process struct {
	Args, Env []string
	Cwd       string
	// Init runs Args under the small init, whose executable is InitFD.
	InitFD int

	UID, GID uint32
	Groups   []uint32
	Umask    uint32

	Rlimits     []Rlimit
	OOMScoreAdj *int

	// Capability sets, bit n for capability n.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	LastCap                                              int
	NoNewPrivs                                           bool

	Seccomp      []byte // sock_filter array
	SeccompFlags uint

	Terminal      bool
	Rows, Columns uint16
	// Null are the streams that are /dev/null, the container's.
	Null [3]bool
}

// Rlimit is a resource limit by its number.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Message is what stage 2 and the agent tell each other.
type Message struct {
	// From the agent: "plan" (with descriptors), "descriptors" (as long as more
	// of the plan's follow), "network" (the interfaces are there), "start" (with
	// the file that Pids is written to, when there is a limit).
	// From stage 2: "ready" (with the terminal's master, when there is one),
	// "started" (with Pid and a pidfd; of a fork, see enter and create), "error".
	Kind string
	Pid  int // also with "error", when there's a zombie to reap
	More int // descriptors that follow in messages of their own
	// Pids is the limit of processes of the container's cgroup, "" for none.
	Pids string
	Err  string
	// Class of the error: "", ClassNotFound or ClassNotExecutable.
	Class string
}

// MaxDescriptors is how many a message can carry (SCM_MAX_FD in the kernel's
// scm.h).
const MaxDescriptors = 253

// Classes of errors.
const (
	ClassNotFound      = "not found"
	ClassNotExecutable = "not executable"
	// ClassEnded: the container that the process was to be in has ended, or the
	// kernel says what it says then.
	ClassEnded = "ended"
)
