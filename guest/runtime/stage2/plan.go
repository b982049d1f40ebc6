// Package stage2 is what runs between clone and execve of a container's
// process: a fresh process image that carries out a Plan.
//
// The plan is computed by package runtime; nothing is decided here but what
// only the container's own file system can tell. The package imports little,
// so that an executable made of it starts fast.
//
// Descriptors of stage 2: 0 to 2 are the process's streams, 3 is the plan (a
// sealed memfd), 4 the control socket (SOCK_SEQPACKET, one JSON Message a
// packet), 5 and up what the plan names.
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

// Descriptors of stage 2.
const (
	PlanFD    = 3
	ControlFD = 4
	FirstFD   = 5
)

// Plan is what stage 2 does, in the order of its fields.
type Plan struct {
	// Join, by descriptor: the namespaces of a running container (exec), or
	// those that the spec names by path (create).
	Join []Namespace `json:",omitempty"`

	// Root is what Create's stage 2 makes; nil for an exec.
	Root *Root `json:",omitempty"`

	// PidFD, for an exec, is the container's first process, whose pid and
	// cgroup namespaces the process joins, and CgroupFD its cgroup.
	PidFD, CgroupFD int `json:",omitempty"`

	Process Process
}

// Namespace is one to join.
type Namespace struct {
	FD    int
	Flags int // CLONE_NEW*; several for a pidfd
}

// Root is how the container looks from inside.
type Root struct {
	Path        string // the mounted root, in the agent's namespace
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
	Type    string   `json:",omitempty"`
	Source  string   `json:",omitempty"`
	Options []string `json:",omitempty"` // "key" or "key=value", for the file system

	// MOUNT_ATTR_* to set and clear, on the mount and on the whole tree.
	Set, Clear       uint64 `json:",omitempty"`
	RecSet, RecClear uint64 `json:",omitempty"`

	Recursive   bool   `json:",omitempty"` // rbind
	Propagation uint64 `json:",omitempty"` // MS_PRIVATE, …
	PropRec     bool   `json:",omitempty"` // for the whole tree
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
	InitFD int `json:",omitempty"`

	UID, GID uint32
	Groups   []uint32
	Umask    uint32

	Rlimits     []Rlimit
	OOMScoreAdj *int `json:",omitempty"`

	// Capability sets, bit n for capability n.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	LastCap                                              int
	NoNewPrivs                                           bool

	Seccomp      []byte `json:",omitempty"` // sock_filter array
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
	// From the agent: "network" (the interfaces are there), "start".
	// From stage 2: "ready" (with the terminal's master, when there is one),
	// "started" (with Pid and a pidfd; exec only), "error".
	Kind string
	Pid  int    `json:",omitempty"` // also with "error", when there's a zombie to reap
	Err  string `json:",omitempty"`
	// Class of the error: "", ClassNotFound or ClassNotExecutable.
	Class string `json:",omitempty"`
}

// Classes of errors.
const (
	ClassNotFound      = "not found"
	ClassNotExecutable = "not executable"
)
