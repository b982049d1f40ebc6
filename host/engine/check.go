package engine

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// checkRequest refuses what is wrong or not supported, by name.
func checkRequest(req *container.CreateRequest) error {
	if err := checkConfig(req.Config); err != nil {
		return err
	}
	if err := checkHost(req.HostConfig); err != nil {
		return err
	}
	if req.HostConfig.UTSMode.IsHost() && req.Config.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	return checkSharedNetwork(req.Config, req.HostConfig)
}

// named is a field that is not supported when set.
type named struct {
	name string
	set  bool
}

func refuse(fields []named) error {
	for _, f := range fields {
		if f.set {
			return unsupported("%s", f.name)
		}
	}
	return nil
}

func checkConfig(c *container.Config) error {
	if c.StopSignal != "" {
		if _, err := signalNumber(c.StopSignal, sigTERM); err != nil {
			return invalid("invalid signal: %s", c.StopSignal)
		}
	}
	for _, kv := range c.Env {
		if kv == "" || strings.HasPrefix(kv, "=") {
			return invalid("invalid environment variable: %s", kv)
		}
	}
	if c.WorkingDir != "" && !strings.HasPrefix(c.WorkingDir, "/") {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if err := checkHealth(c.Healthcheck); err != nil {
		return err
	}
	if _, err := proxied(c.Labels); err != nil {
		return err
	}
	return refuse([]named{
		{"Config.NetworkDisabled", c.NetworkDisabled},
	})
}

func checkHost(h *container.HostConfig) error {
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("%s", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	if h.ShmSize < 0 {
		return invalid("SHM size can not be less than 0")
	}
	if _, err := parseSecurity(h.SecurityOpt); err != nil {
		return err
	}
	if _, err := capabilities(h); err != nil {
		return err
	}
	if _, err := resources(h); err != nil {
		return err
	}
	for _, g := range h.GroupAdd {
		if g == "" || strings.ContainsAny(g, "\n:") {
			return invalid("invalid group: %q", g)
		}
	}
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	for _, d := range h.Devices {
		if !strings.HasPrefix(d.PathOnHost, "/") || !strings.HasPrefix(d.PathInContainer, "/") {
			return invalid("invalid device specification: %s:%s: want absolute paths", d.PathOnHost, d.PathInContainer)
		}
		if p := d.CgroupPermissions; p != "" && strings.Trim(p, "rwm") != "" {
			return invalid("invalid device permissions: %q", p)
		}
	}
	if err := checkResources(&h.Resources); err != nil {
		return err
	}
	if err := checkModes(h); err != nil {
		return err
	}
	if err := checkPorts(h.PortBindings); err != nil {
		return err
	}
	if err := checkLog(h.LogConfig); err != nil {
		return err
	}
	return refuse([]named{
		{"HostConfig.VolumeDriver " + strconv.Quote(h.VolumeDriver), h.VolumeDriver != "" && h.VolumeDriver != "local"},
		{"HostConfig.Cgroup", h.Cgroup != ""},
		{"HostConfig.StorageOpt", len(h.StorageOpt) > 0},
		{"HostConfig.Runtime " + strconv.Quote(h.Runtime), h.Runtime != ""},
		{"HostConfig.Isolation", !h.Isolation.IsDefault()},
	})
}

// ownSysctls are those that belong to a container's own IPC namespace
// (namespaces(7)); those of its own network namespace begin with net.
var ownSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true,
	"kernel.shmall": true, "kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}

// checkSysctls refuses what would change the whole guest: with
// kernel.core_pattern a container could run programs as the guest's root.
func checkSysctls(h *container.HostConfig) error {
	for name := range h.Sysctls {
		dotted := strings.ReplaceAll(name, "/", ".")
		switch {
		case h.IpcMode.IsHost() && (ownSysctls[dotted] || strings.HasPrefix(dotted, "fs.mqueue.")):
			return invalid("sysctl %q not allowed in host ipc namespace", name)
		case ownSysctls[dotted], strings.HasPrefix(dotted, "fs.mqueue."):
		case strings.HasPrefix(dotted, "net."):
			if h.NetworkMode.IsHost() {
				return invalid("sysctl %q not allowed in host network namespace", name)
			}
		default:
			return invalid("sysctl %q is not in a separate kernel namespace", name)
		}
	}
	return nil
}

func checkModes(h *container.HostConfig) error {
	if err := checkSysctls(h); err != nil {
		return err
	}
	if !h.IpcMode.Valid() {
		return invalid("invalid IPC mode: %s", h.IpcMode)
	}
	if !h.PidMode.Valid() {
		return invalid("invalid PID mode: %s", h.PidMode)
	}
	if !h.UTSMode.Valid() {
		return invalid("invalid UTS mode: %s", h.UTSMode)
	}
	if !h.UsernsMode.Valid() {
		return invalid("invalid userns mode: %s", h.UsernsMode)
	}
	if !h.CgroupnsMode.Valid() {
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	}
	return nil
}

// cpuList is "0-3,7" and the like.
var cpuList = regexp.MustCompile(`^\d+(-\d+)?(,\d+(-\d+)?)*$`)

func checkResources(r *container.Resources) error {
	const minMemory = 6 << 20
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CpusetCpus != "" && !cpuList.MatchString(r.CpusetCpus):
		return invalid("Invalid value %s for cpuset cpus", r.CpusetCpus)
	case r.CpusetMems != "" && !cpuList.MatchString(r.CpusetMems):
		return invalid("Invalid value %s for cpuset mems", r.CpusetMems)
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	}
	return refuseResources(r)
}

// checkCPUs refuses more processors than the guest has, or others, and other memory
// than its own.
func (e *Engine) checkCPUs(r *container.Resources) error {
	if r.NanoCPUs < 0 || r.NanoCPUs > int64(e.cfg.CPUs)*1e9 {
		return invalid("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", e.cfg.CPUs)
	}
	for _, part := range strings.FieldsFunc(r.CpusetCpus, func(c rune) bool { return c == ',' || c == '-' }) {
		if n, err := strconv.Atoi(part); err != nil || n >= e.cfg.CPUs {
			available := "0"
			if e.cfg.CPUs > 1 {
				available = fmt.Sprint("0-", e.cfg.CPUs-1)
			}
			return invalid("Requested CPUs are not available - requested %s, available: %s", r.CpusetCpus, available)
		}
	}
	if strings.Trim(r.CpusetMems, "0,-") != "" { // the guest has one node
		return invalid("Requested memory nodes are not available - requested %s, available: 0", r.CpusetMems)
	}
	return nil
}

// refuseResources refuses the limits that there are not.
func refuseResources(r *container.Resources) error {
	swappiness := r.MemorySwappiness != nil && *r.MemorySwappiness != -1
	return refuse([]named{
		{"HostConfig.CgroupParent", r.CgroupParent != ""},
		{"HostConfig.BlkioWeightDevice", len(r.BlkioWeightDevice) > 0},
		{"HostConfig.BlkioDeviceReadBps", len(r.BlkioDeviceReadBps) > 0},
		{"HostConfig.BlkioDeviceWriteBps", len(r.BlkioDeviceWriteBps) > 0},
		{"HostConfig.BlkioDeviceReadIOps", len(r.BlkioDeviceReadIOps) > 0},
		{"HostConfig.BlkioDeviceWriteIOps", len(r.BlkioDeviceWriteIOps) > 0},
		{"HostConfig.CpuRealtimePeriod", r.CPURealtimePeriod != 0},
		{"HostConfig.CpuRealtimeRuntime", r.CPURealtimeRuntime != 0},
		{"HostConfig.DeviceRequests", len(r.DeviceRequests) > 0},
		{"HostConfig.MemorySwappiness", swappiness},
		{"HostConfig.OomKillDisable", r.OomKillDisable != nil && *r.OomKillDisable},
		{"HostConfig.CpuCount", r.CPUCount != 0},
		{"HostConfig.CpuPercent", r.CPUPercent != 0},
		{"HostConfig.IOMaximumIOps", r.IOMaximumIOps != 0},
		{"HostConfig.IOMaximumBandwidth", r.IOMaximumBandwidth != 0},
	})
}

func checkPorts(m network.PortMap) error {
	for port, bindings := range m {
		if port.Proto() != network.TCP && port.Proto() != network.UDP {
			return unsupported("HostConfig.PortBindings of %s", port)
		}
		for _, b := range bindings {
			if _, err := hostPorts(b.HostPort); err != nil {
				return err
			}
		}
	}
	return nil
}

// hostPorts reads a binding's port: "" (any), "8080" or "8000-8010".
func hostPorts(s string) (r [2]int, err error) {
	if s == "" {
		return r, nil
	}
	pr, err := network.ParsePortRange(s)
	if err != nil {
		return r, invalid("invalid port specification: %q", s)
	}
	return [2]int{int(pr.Start()), int(pr.End())}, nil
}

// checkSharedNetwork refuses what a container can't have that is in another's
// network.
func checkSharedNetwork(c *container.Config, h *container.HostConfig) error {
	if h.NetworkMode.IsHost() && len(h.Links) > 0 {
		return errHostLink
	}
	if !h.NetworkMode.IsContainer() {
		return nil
	}
	if h.NetworkMode.ConnectedContainer() == "" {
		return invalid("invalid network mode: invalid container format container:<name|id>")
	}
	for _, x := range []struct {
		set  bool
		text string
	}{
		{c.Hostname != "", "hostname and the network mode"},
		{len(h.Links) > 0, "container type network can't be used with links. This would result in undefined behavior"},
		{len(h.DNS) > 0, "dns and the network mode"},
		{len(h.ExtraHosts) > 0, "custom host-to-IP mapping and the network mode"},
		{len(h.PortBindings) > 0 || h.PublishAllPorts, "port publishing and the container type network mode"},
		{len(c.ExposedPorts) > 0, "port exposing and the container type network mode"},
	} {
		if x.set {
			return invalid("conflicting options: %s", x.text)
		}
	}
	return nil
}

// endpointNetwork is the network's own name.
func endpointNetwork(name string) string {
	if name == "" || name == network.NetworkDefault {
		return network.NetworkBridge
	}
	return name
}

// parseExtraHost reads "NAME:IP" or "NAME=IP".
func parseExtraHost(s string, gateway netip.Addr) (name, ip string, err error) {
	name, ip, ok := strings.Cut(s, "=")
	if !ok {
		name, ip, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" {
		return "", "", invalid("bad format for add-host: %q", s)
	}
	if ip == "host-gateway" {
		return name, gateway.String(), nil
	}
	ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
	if _, err := netip.ParseAddr(ip); err != nil {
		return "", "", invalid("invalid IP address in add-host: %q", ip)
	}
	return name, ip, nil
}
