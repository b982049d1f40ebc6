package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// createFlags are the options of `run` and `create` that describe a container.
// They become one API request; nothing here talks to the daemon.
type createFlags struct {
	name, hostname, domainname, user, workdir, entrypoint string
	pull, cidfile, stopSignal, restart                    string
	ipc, pid, uts, cgroupns                               string
	interactive, tty, init, readOnly, privileged, remove  bool
	publishAll, quiet, ssh                                bool
	stopTimeout                                           int
	pidsLimit                                             int64
	memory, memorySwap, memoryReservation, shmSize        bytesValue
	cpus                                                  cpusValue
	cpuShares                                             int64
	cpuset                                                string
	ulimits                                               ulimitsValue
	health                                                healthFlags
	limits                                                limitFlags
	mounts                                                mountsValue
	logDriver                                             string
	logOpts                                               []string
	env, envFiles, volumes, publish, expose, labels       []string
	tmpfs, capAdd, capDrop, addHosts, securityOpt         []string
	dns, dnsOptions, dnsSearch, groupAdd, sysctls         []string
	networks                                              networkFlags
	changed                                               func(name string) bool
}

// register adds the flags. `-h` is the host name here, so help has no letter.
func (f *createFlags) register(fs *pflag.FlagSet) {
	fs.SetInterspersed(false)
	fs.Bool("help", false, "Print usage")
	checkedVar(fs, &f.addHosts, "add-host", "", "Add a custom host-to-IP mapping (host:ip)", checkHost)
	listVar(fs, &f.capAdd, "cap-add", "", "Add Linux capabilities")
	listVar(fs, &f.capDrop, "cap-drop", "", "Drop Linux capabilities")
	fs.StringVar(&f.cgroupns, "cgroupns", "", "Cgroup namespace to use (host|private)")
	fs.StringVar(&f.cidfile, "cidfile", "", "Write the container ID to the file")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Var(&f.cpus, "cpus", "Number of CPUs")
	fs.StringVar(&f.cpuset, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	checkedVar(fs, &f.dns, "dns", "", "Set custom DNS servers", checkAddress)
	listVar(fs, &f.dnsOptions, "dns-option", "", "Set DNS options")
	listVar(fs, &f.dnsSearch, "dns-search", "", "Set custom DNS search domains")
	fs.StringVar(&f.domainname, "domainname", "", "Container NIS domain name")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	checkedVar(fs, &f.env, "env", "e", "Set environment variables", checkVariable)
	listVar(fs, &f.envFiles, "env-file", "", "Read in a file of environment variables")
	listVar(fs, &f.expose, "expose", "", "Expose a port or a range of ports")
	listVar(fs, &f.groupAdd, "group-add", "", "Add additional groups to join")
	f.health.register(fs)
	f.limits.register(fs)
	fs.Var(&f.mounts, "mount", "Attach a filesystem mount to the container")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "Container host name")
	fs.BoolVar(&f.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.StringVar(&f.ipc, "ipc", "", "IPC mode to use")
	checkedVar(fs, &f.labels, "label", "l", "Set meta data on a container", checkLabel)
	fs.StringVar(&f.logDriver, "log-driver", "", "Logging driver for the container")
	listVar(fs, &f.logOpts, "log-opt", "", "Log driver options")
	fs.VarP(&f.memory, "memory", "m", "Memory limit")
	fs.Var(&f.memoryReservation, "memory-reservation", "Memory soft limit")
	fs.Var(&f.memorySwap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fs.StringVar(&f.name, "name", "", "Assign a name to the container")
	fs.StringVar(&f.pid, "pid", "", "PID namespace to use")
	fs.Int64Var(&f.pidsLimit, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to this container")
	listVar(fs, &f.publish, "publish", "p", "Publish a container's port(s) to the host")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
	fs.StringVar(&f.pull, "pull", pullMissing, `Pull image before running ("always", "missing", "never")`)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress the pull output")
	fs.BoolVar(&f.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	fs.StringVar(&f.restart, "restart", "no", "Restart policy to apply when a container exits")
	fs.BoolVar(&f.remove, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	listVar(fs, &f.securityOpt, "security-opt", "", "Security Options")
	fs.Var(&f.shmSize, "shm-size", "Size of /dev/shm")
	fs.BoolVar(&f.ssh, "ssh", false, "Give the container the SSH agent of SSH_AUTH_SOCK")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "Signal to stop the container")
	fs.IntVar(&f.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	checkedVar(fs, &f.sysctls, "sysctl", "", "Sysctl options", checkSysctl)
	listVar(fs, &f.tmpfs, "tmpfs", "", "Mount a tmpfs directory")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.Var(&f.ulimits, "ulimit", "Ulimit options")
	fs.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fs.StringVar(&f.uts, "uts", "", "UTS namespace to use")
	listVar(fs, &f.volumes, "volume", "v", "Bind mount a volume")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	f.networks.register(fs)
	refuseFlags(fs, refusedFlags)
	f.changed = fs.Changed
}

// request makes the API request for `IMAGE [COMMAND] [ARG...]`.
func (f *createFlags) request(args []string, getenv func(string) (string, bool)) (client.ContainerCreateOptions, error) {
	var none client.ContainerCreateOptions
	if f.pull != pullAlways && f.pull != pullMissing && f.pull != pullNever {
		return none, fmt.Errorf("invalid pull option: '%s': must be one of %q, %q or %q", f.pull, pullAlways, pullMissing, pullNever)
	}
	cfg, err := f.config(args, getenv)
	if err != nil {
		return none, err
	}
	host, err := f.hostConfig()
	if err != nil {
		return none, err
	}
	if host.PortBindings, err = f.ports(cfg); err != nil {
		return none, err
	}
	if host.Binds, err = f.binds(cfg); err != nil {
		return none, err
	}
	if f.ssh {
		if err := shareAgent(cfg, host, getenv); err != nil {
			return none, err
		}
	}
	req := client.ContainerCreateOptions{Config: cfg, HostConfig: host, Name: f.name}
	if req.Platform, err = parsePlatform(f.limits.platform); err != nil {
		err = fmt.Errorf("error parsing specified platform: %w", err)
		return none, err
	}
	if err := f.networks.apply(&req); err != nil {
		return none, err
	}
	return req, nil
}

func (f *createFlags) config(args []string, getenv func(string) (string, bool)) (*container.Config, error) {
	env, err := environment(f.envFiles, f.env, getenv)
	if err != nil {
		return nil, err
	}
	check, err := f.health.config(f.changed)
	if err != nil {
		return nil, err
	}
	labels, err := f.limits.labels(f.labels)
	if err != nil {
		return nil, err
	}
	stdin, stdout, stderr := f.limits.streams(f.interactive)
	cfg := &container.Config{
		Healthcheck: check,

		Hostname: f.hostname, Domainname: f.domainname, User: f.user, WorkingDir: f.workdir,
		Tty: f.tty, OpenStdin: f.interactive,
		AttachStdin: stdin, AttachStdout: stdout, AttachStderr: stderr,
		StdinOnce: f.interactive && stdin,
		Env:       env, Image: args[0],
		Labels: labels, StopSignal: f.stopSignal,
	}
	if len(args) > 1 {
		cfg.Cmd = args[1:]
	}
	if f.entrypoint != "" || f.changed("entrypoint") {
		cfg.Entrypoint = []string{f.entrypoint} // one empty string: without the image's
	}
	if f.changed("stop-timeout") {
		cfg.StopTimeout = &f.stopTimeout
	}
	return cfg, nil
}

func (f *createFlags) hostConfig() (*container.HostConfig, error) {
	restart, err := parseRestart(f.restart)
	if err != nil {
		return nil, err
	}
	if f.remove && !restart.IsNone() {
		return nil, errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	security, err := securityOptions(f.securityOpt)
	if err != nil {
		return nil, err
	}
	given := len(security)
	security = slices.DeleteFunc(security, func(o string) bool { return o == "systempaths=unconfined" })
	hosts, err := extraHosts(f.addHosts)
	if err != nil {
		return nil, err
	}
	dns, err := addresses(f.dns)
	if err != nil {
		return nil, err
	}
	if f.logDriver == "none" && len(f.logOpts) > 0 {
		return nil, errors.New("invalid logging opts for driver none")
	}
	h := &container.HostConfig{
		Mounts:          f.mounts.list,
		LogConfig:       container.LogConfig{Type: f.logDriver, Config: keyValues(f.logOpts)},
		ContainerIDFile: f.cidfile, AutoRemove: f.remove, RestartPolicy: restart,
		PublishAllPorts: f.publishAll,
		CapAdd:          f.capAdd, CapDrop: f.capDrop, Privileged: f.privileged, ReadonlyRootfs: f.readOnly,
		SecurityOpt: security, ExtraHosts: hosts, GroupAdd: f.groupAdd,
		DNS: dns, DNSOptions: append([]string{}, f.dnsOptions...), DNSSearch: append([]string{}, f.dnsSearch...),
		IpcMode: container.IpcMode(f.ipc), PidMode: container.PidMode(f.pid), UTSMode: container.UTSMode(f.uts),
		CgroupnsMode: container.CgroupnsMode(f.cgroupns),
		ShmSize:      int64(f.shmSize), Tmpfs: tmpfs(f.tmpfs), Sysctls: keyValues(f.sysctls),
		Resources: container.Resources{ // lists that are empty are not null, as docker's
			Devices: []container.DeviceMapping{}, BlkioWeightDevice: []*blkiodev.WeightDevice{}, BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{}, BlkioDeviceWriteBps: []*blkiodev.ThrottleDevice{},
			BlkioDeviceReadIOps: []*blkiodev.ThrottleDevice{}, BlkioDeviceWriteIOps: []*blkiodev.ThrottleDevice{},
			Memory: int64(f.memory), MemorySwap: int64(f.memorySwap), MemoryReservation: int64(f.memoryReservation),
			NanoCPUs: int64(f.cpus), CPUShares: f.cpuShares, CpusetCpus: f.cpuset, Ulimits: append([]*units.Ulimit{}, f.ulimits.list...),
		},
	}
	if len(security) < given { // nothing masked, and nothing read-only
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	}
	if err := f.limits.apply(h); err != nil {
		return nil, err
	}
	switch {
	case !h.PidMode.Valid():
		return nil, errors.New("--pid: invalid PID mode")
	case !h.UTSMode.Valid():
		return nil, errors.New("--uts: invalid UTS mode")
	case !h.UsernsMode.Valid():
		return nil, errors.New("--userns: invalid USER mode")
	case !h.CgroupnsMode.Valid():
		return nil, errors.New("--cgroupns: invalid CGROUP mode")
	}
	if f.changed("pids-limit") {
		h.PidsLimit = &f.pidsLimit
	}
	if f.changed("init") {
		h.Init = &f.init
	}
	return h, nil
}

// parseRestart reads "on-failure[:N]" and the like.
func parseRestart(s string) (container.RestartPolicy, error) {
	name, count, ok := strings.Cut(s, ":")
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	if ok {
		if _, err := fmt.Sscanf(count+"\n", "%d\n", &p.MaximumRetryCount); err != nil {
			return p, errors.New("invalid restart policy format: maximum retry count must be an integer")
		}
	}
	return p, nil // the daemon knows which there are
}

// securityOptions replaces a seccomp profile's path by its content: the daemon
// is not meant to read the user's files.
func securityOptions(opts []string) ([]string, error) {
	var out []string
	for _, o := range opts {
		key, value, ok := strings.Cut(o, "=")
		if !ok && key != "no-new-privileges" {
			_, value, ok = strings.Cut(o, ":") // as it was written once
			if !ok || value == "" {
				return nil, fmt.Errorf("Invalid --security-opt: %q", o) //nolint:staticcheck // Docker's words
			}
		}
		if key == "seccomp" && value != "unconfined" && value != "builtin" {
			text, err := os.ReadFile(value)
			if err != nil {
				return nil, fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, text); err != nil {
				return nil, fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", value, err)
			}
			o = "seccomp=" + b.String()
		}
		out = append(out, o)
	}
	return out, nil
}

// extraHosts checks "NAME:IP" and "NAME=IP", and makes the first of the second.
func extraHosts(hosts []string) ([]string, error) {
	var out []string
	for _, h := range hosts {
		name, ip, ok := strings.Cut(h, "=")
		if !ok {
			name, ip, ok = strings.Cut(h, ":")
		}
		if !ok || name == "" {
			return nil, fmt.Errorf("bad format for add-host: %q", h)
		}
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if _, err := netip.ParseAddr(ip); err != nil && ip != "host-gateway" {
			return nil, fmt.Errorf("invalid IP address in add-host: %q", ip)
		}
		out = append(out, name+":"+ip)
	}
	return out, nil
}

func checkHost(s string) error {
	_, err := extraHosts([]string{s})
	return err
}

func checkVariable(s string) error {
	if name, _, _ := strings.Cut(s, "="); name == "" {
		return fmt.Errorf("invalid environment variable: %s", s)
	}
	return nil
}

func checkLabel(s string) error {
	if name, _, _ := strings.Cut(s, "="); name == "" {
		return fmt.Errorf("invalid label '%s': empty name", s)
	}
	return nil
}

func checkAddress(s string) error {
	_, err := addresses([]string{s})
	return err
}

// namespaced are the sysctls that Docker's client knows to belong to a container,
// beside those of the network and of message queues.
var namespaced = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

func checkSysctl(s string) error {
	name, _, ok := strings.Cut(s, "=")
	if !ok || !slices.Contains(namespaced, name) && !strings.HasPrefix(name, "net.") && !strings.HasPrefix(name, "fs.mqueue.") {
		return fmt.Errorf("sysctl '%s' is not allowed", s)
	}
	return nil
}

func addresses(list []string) ([]netip.Addr, error) {
	out := []netip.Addr{}
	for _, s := range list {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("IP address is not correctly formatted: %s", s)
		}
		out = append(out, ip)
	}
	return out, nil
}

// binds sorts the volumes: those with a source are binds, the others anonymous
// volumes of the container. A source that begins with a dot is a path from
// here.
func (f *createFlags) binds(cfg *container.Config) ([]string, error) {
	var binds []string
	for _, v := range f.volumes {
		source, rest, ok := strings.Cut(v, ":")
		if v == "" || ok && (source == "" || rest == "") {
			return nil, fmt.Errorf("invalid spec: %s: empty section between colons", v)
		}
		if !ok {
			if cfg.Volumes == nil {
				cfg.Volumes = map[string]struct{}{}
			}
			cfg.Volumes[v] = struct{}{}
			continue
		}
		if strings.HasPrefix(source, ".") {
			abs, err := filepath.Abs(source)
			if err != nil {
				return nil, err
			}
			source = abs
		}
		binds = append(binds, source+":"+rest)
	}
	return binds, nil
}

// agentSocket is where --ssh puts the agent's socket, as Docker Desktop does.
const agentSocket = "/run/host-services/ssh-auth.sock"

// shareAgent mounts the user's SSH agent and tells the container's programs.
func shareAgent(cfg *container.Config, h *container.HostConfig, getenv func(string) (string, bool)) error {
	path, _ := getenv("SSH_AUTH_SOCK")
	if path == "" {
		return errors.New("--ssh: SSH_AUTH_SOCK is not set: no SSH agent runs here")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	h.Mounts = append(h.Mounts, mount.Mount{Type: mount.TypeBind, Source: path, Target: agentSocket})
	cfg.Env = append(cfg.Env, "SSH_AUTH_SOCK="+agentSocket)
	return nil
}

// tmpfs reads "PATH[:OPTIONS]".
func tmpfs(list []string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, t := range list {
		path, opts, _ := strings.Cut(t, ":")
		out[path] = opts
	}
	return out
}

// bytesValue is a number of bytes with a unit: "64m".
type bytesValue int64

func (v *bytesValue) String() string {
	if *v == 0 {
		return "" // no default in the help
	}
	return units.BytesSize(float64(*v))
}
func (v *bytesValue) Type() string { return "bytes" }
func (v *bytesValue) Set(s string) error {
	if s == "-1" {
		*v = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	*v = bytesValue(n)
	return err
}

// cpusValue is a number of CPUs, kept in billionths.
type cpusValue int64

func (v *cpusValue) String() string {
	if *v == 0 {
		return ""
	}
	return big.NewRat(int64(*v), 1e9).FloatString(3)
}
func (v *cpusValue) Type() string { return "decimal" }
func (v *cpusValue) Set(s string) error {
	cpus, ok := new(big.Rat).SetString(s)
	if !ok {
		return fmt.Errorf("failed to parse %v as a rational number", s)
	}
	nano := cpus.Mul(cpus, big.NewRat(1e9, 1))
	if !nano.IsInt() || !nano.Num().IsInt64() {
		return errors.New("value is too precise")
	}
	*v = cpusValue(nano.Num().Int64())
	return nil
}

// ulimitsValue is a list of "NAME=SOFT[:HARD]".
type ulimitsValue struct{ list []*units.Ulimit }

func (v *ulimitsValue) String() string { return "" }
func (v *ulimitsValue) Type() string   { return "ulimit" }
func (v *ulimitsValue) Set(s string) error {
	u, err := units.ParseUlimit(s)
	if err == nil {
		v.list = append(v.list, u)
	}
	return err
}
