package main

import (
	"errors"
	"maps"
	"slices"

	"github.com/spf13/pflag"
)

// refusedFlags are Docker's options of run and create that Sampan has not, with
// the reason.
var refusedFlags = map[string]string{
	"blkio-weight-device":   "the guest has one disk for all",
	"cgroup-parent":         "the guest's cgroups are the agent's",
	"cpu-count":             "it is Windows's",
	"cpu-percent":           "it is Windows's",
	"cpu-rt-period":         "it is cgroup v1's",
	"cpu-rt-runtime":        "it is cgroup v1's",
	"device-read-bps":       "the guest has one disk for all",
	"device-read-iops":      "the guest has one disk for all",
	"device-write-bps":      "the guest has one disk for all",
	"device-write-iops":     "the guest has one disk for all",
	"disable-content-trust": "there is no content trust",
	"gpus":                  "the guest has none",
	"io-maxbandwidth":       "it is Windows's",
	"io-maxiops":            "it is Windows's",
	"isolation":             "it is Windows's",
	"kernel-memory":         "it is cgroup v1's",
	"link-local-ip":         "endpoints have none of their own",
	"memory-swappiness":     "it is cgroup v1's",
	"runtime":               "there is one",
	"storage-opt":           "layers have no quota",
	"use-api-socket":        "it is experimental",
}

// refusedUpdateFlags are those of update.
var refusedUpdateFlags = map[string]string{
	"cpu-rt-period":  "it is cgroup v1's",
	"cpu-rt-runtime": "it is cgroup v1's",
	"kernel-memory":  "it is cgroup v1's",
}

// refuseFlags adds options that are refused by their names when somebody uses
// them; help is silent about them.
func refuseFlags(fs *pflag.FlagSet, list map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		f := fs.VarPF(refusedValue(list[name]), name, "", "")
		f.Hidden = true
		if name == "disable-content-trust" || name == "use-api-socket" {
			f.NoOptDefVal = "true"
		}
	}
}

// refusedValue is the reason why an option is refused.
type refusedValue string

func (refusedValue) String() string     { return "" }
func (refusedValue) Type() string       { return "string" }
func (v refusedValue) Set(string) error { return errors.New("not supported: " + string(v)) }
