package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// limitFlags are the options that bound or widen what a container may do, and
// those that few need.
type limitFlags struct {
	devices, deviceRules, annotations, labelFiles []string
	volumesFrom, attach                           []string
	blkioWeight                                   uint16
	cpuPeriod, cpuQuota                           int64
	cpusetMems, userns, platform, volumeDriver    string
	oomScoreAdj                                   int
	oomKillDisable                                bool
}

func (f *limitFlags) register(fs *pflag.FlagSet) {
	listVar(fs, &f.annotations, "annotation", "", "Add an annotation to the container (passed through to the OCI runtime)")
	checkedVar(fs, &f.attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR", checkStream)
	fs.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	listVar(fs, &f.devices, "device", "", "Add a device of the virtual machine to the container")
	checkedVar(fs, &f.deviceRules, "device-cgroup-rule", "", "Add a rule to the cgroup allowed devices list", checkDeviceRule)
	listVar(fs, &f.labelFiles, "label-file", "", "Read in a line delimited file of labels")
	fs.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "Disable OOM Killer")
	fs.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	fs.StringVar(&f.platform, "platform", "", "Set platform if server is multi-platform capable")
	fs.StringVar(&f.userns, "userns", "", "User namespace to use")
	fs.StringVar(&f.volumeDriver, "volume-driver", "", "Optional volume driver for the container")
	listVar(fs, &f.volumesFrom, "volumes-from", "", "Mount volumes from the specified container(s)")
}

// apply sets what the options ask for.
func (f *limitFlags) apply(h *container.HostConfig) error {
	for _, d := range f.devices {
		m, err := parseDevice(d)
		if err != nil {
			return err
		}
		h.Devices = append(h.Devices, m)
	}
	if len(f.annotations) > 0 {
		h.Annotations = keyValues(f.annotations)
	}
	h.DeviceCgroupRules, h.VolumesFrom, h.VolumeDriver = f.deviceRules, f.volumesFrom, f.volumeDriver
	h.BlkioWeight, h.CPUPeriod, h.CPUQuota, h.CpusetMems = f.blkioWeight, f.cpuPeriod, f.cpuQuota, f.cpusetMems
	h.UsernsMode, h.OomScoreAdj = container.UsernsMode(f.userns), f.oomScoreAdj
	h.OomKillDisable = &f.oomKillDisable
	return nil
}

// parseDevice reads "PATH[:PATH_IN_CONTAINER][:PERMISSIONS]".
func parseDevice(s string) (container.DeviceMapping, error) {
	m := container.DeviceMapping{CgroupPermissions: "rwm"}
	parts := strings.Split(s, ":")
	m.PathOnHost = parts[0]
	m.PathInContainer = m.PathOnHost
	isPermissions := func(p string) bool { return p != "" && strings.Trim(p, "rwm") == "" }
	switch len(parts) {
	case 1:
	case 2:
		if isPermissions(parts[1]) {
			m.CgroupPermissions = parts[1]
		} else if parts[1] != "" {
			m.PathInContainer = parts[1]
		}
	case 3:
		m.PathInContainer, m.CgroupPermissions = parts[1], parts[2]
		if !isPermissions(parts[2]) {
			return m, fmt.Errorf("bad mode specified: %s", parts[2])
		}
	}
	if len(parts) > 3 || s == "" || !isPermissions(m.CgroupPermissions) {
		return m, fmt.Errorf("invalid device specification: %s", s)
	}
	if !strings.HasPrefix(m.PathInContainer, "/") {
		return m, fmt.Errorf("%s is not an absolute path", m.PathInContainer)
	}
	return m, nil
}

// labels reads files of labels, then adds those of the command line.
func (f *limitFlags) labels(list []string) (map[string]string, error) {
	var all []string
	for _, name := range f.labelFiles {
		more, err := environmentFile(name, func(string) (string, bool) { return "", false }) // no value, no label
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return keyValues(append(all, list...)), nil
}

func checkStream(s string) error {
	switch strings.ToLower(s) {
	case "stdin", "stdout", "stderr":
		return nil
	}
	return errors.New("valid streams are STDIN, STDOUT and STDERR")
}

var deviceRule = regexp.MustCompile(`^[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}$`)

func checkDeviceRule(s string) error {
	if !deviceRule.MatchString(s) {
		return fmt.Errorf("invalid device cgroup format '%s'", s)
	}
	return nil
}

// streams are those that a client attaches to: of the options, or all.
func (f *limitFlags) streams(interactive bool) (stdin, stdout, stderr bool) {
	for _, s := range f.attach {
		switch strings.ToLower(s) {
		case "stdin":
			stdin = true
		case "stdout":
			stdout = true
		case "stderr":
			stderr = true
		}
	}
	if len(f.attach) == 0 {
		stdout, stderr = true, true
	}
	return stdin || interactive, stdout, stderr
}
