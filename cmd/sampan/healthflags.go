package main

import (
	"errors"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// healthFlags are the options of a container's health check.
type healthFlags struct {
	cmd                                           string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
}

func (f *healthFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.cmd, "health-cmd", "", "Command to run to check health")
	fs.DurationVar(&f.interval, "health-interval", 0, "Time between running the check (ms|s|m|h)")
	fs.IntVar(&f.retries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	fs.DurationVar(&f.startInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h)")
	fs.DurationVar(&f.startPeriod, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h)")
	fs.DurationVar(&f.timeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h)")
	fs.BoolVar(&f.none, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
}

// config is nil when the image's check is to hold as it is.
func (f *healthFlags) config(changed func(string) bool) (*container.HealthConfig, error) {
	any := false
	for _, name := range []string{"cmd", "interval", "retries", "start-interval", "start-period", "timeout"} {
		any = any || changed("health-"+name)
	}
	switch {
	case f.none && any:
		return nil, errors.New("--no-healthcheck conflicts with --health-* options")
	case f.none:
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	case !any:
		return nil, nil
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"interval", f.interval}, {"timeout", f.timeout}, {"start-period", f.startPeriod}, {"start-interval", f.startInterval}} {
		if d.value < 0 {
			return nil, errors.New("--health-" + d.flag + " cannot be negative")
		}
	}
	if f.retries < 0 {
		return nil, errors.New("--health-retries cannot be negative")
	}
	h := &container.HealthConfig{
		Interval: f.interval, Timeout: f.timeout, StartPeriod: f.startPeriod, StartInterval: f.startInterval, Retries: f.retries,
	}
	if f.cmd != "" {
		h.Test = []string{"CMD-SHELL", f.cmd}
	}
	return h, nil
}
