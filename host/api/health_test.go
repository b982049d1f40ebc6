package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/proto"
)

// What the guest finds shows in inspect, ps and events; a container that has
// ended is unhealthy, as with Docker.
func TestHealth(t *testing.T) {
	d := start(t)
	since := time.Now()
	d.ok("run", "-d", "--name", "web", "-w", "/srv", "--health-cmd", "check it", "--health-interval", "2s", "img", "sleep")
	id := d.inspect("web", "{{.Id}}")
	g := d.machine.running()
	g.mu.Lock()
	check := g.checks[id]
	g.mu.Unlock()
	var p specs.Process
	if err := json.Unmarshal(check.GetProcess(), &p); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Args, []string{"/bin/sh", "-c", "check it"}) || p.Cwd != "/srv" || !slices.Contains(p.Env, "FROM=image") {
		t.Errorf("probe: %+v", p)
	}
	if check.IntervalNano != 2e9 || check.TimeoutNano != 30e9 || check.Retries != 3 || check.StartPeriodNano != 0 || check.StartIntervalNano != 5e9 {
		t.Errorf("check: %v", check)
	}
	shows := func(want string) {
		t.Helper()
		until(t, want, func() bool { return strings.HasSuffix(d.ok("ps", "--format", "{{.Status}}"), " ("+want+")") })
	}
	shows("health: starting")
	g.health <- &proto.HealthResult{Number: 1, Status: "healthy"}
	shows("healthy")
	for n := uint64(2); n < 9; n++ {
		g.health <- &proto.HealthResult{Number: n, Status: "unhealthy", FailingStreak: uint32(n - 1), ExitCode: 3, Output: "no answer"}
	}
	shows("unhealthy")
	until(t, "all results", func() bool { return d.inspect("web", "{{.State.Health.FailingStreak}}") == "7" })
	if got := d.inspect("web", "{{len .State.Health.Log}} {{range .State.Health.Log}}{{.ExitCode}} {{.Output}},{{end}}"); got != "5 "+strings.Repeat("3 no answer,", 5) {
		t.Errorf("log: %s", got)
	}
	for filter, want := range map[string]string{"unhealthy": "web", "healthy": "", "none": ""} {
		if got := d.ok("ps", "-f", "health="+filter, "--format", "{{.Names}}"); got != want {
			t.Errorf("ps -f health=%s: %q", filter, got)
		}
	}
	d.ok("stop", "-t", "0", "web")
	if got := d.inspect("web", "{{.State.Health.Status}}"); got != "unhealthy" {
		t.Errorf("stopped: %s", got)
	}
	out := d.ok("events", "--since", since.Format(time.RFC3339Nano), "--until", time.Now().Format(time.RFC3339Nano), "-f", "event=health_status", "--format", "{{.Action}}")
	if out != "health_status: healthy\nhealth_status: unhealthy" {
		t.Errorf("events: %q", out)
	}
	d.ok("run", "-d", "--name", "none", "--no-healthcheck", "img", "sleep")
	if got := d.inspect("none", "{{if .State.Health}}checked{{end}}{{.Config.Healthcheck.Test}}"); got != "[NONE]" {
		t.Errorf("--no-healthcheck: %s", got)
	}
	for body, words := range map[string]string{
		`{"Test":["CMD","x"],"Interval":1000}`:    "Interval in Healthcheck cannot be less than 1ms",
		`{"Test":["CMD","x"],"StartPeriod":1000}`: "StartPeriod in Healthcheck cannot be less than 1ms",
		`{"Test":["CMD","x"],"Retries":-1}`:       "Retries in Healthcheck cannot be negative",
		`{"Test":["CMD"]}`:                        "no command",
		`{"Test":["FOO","x"]}`:                    "FOO",
	} {
		if code, got := d.raw("POST", "/containers/create", `{"Image":"img","Healthcheck":`+body+`}`); code != 400 || !strings.Contains(got, words) {
			t.Errorf("%s: %d %s", body, code, got)
		}
	}
}
