package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"sampan/host/imagetest"
)

// An image's health check runs in the guest: its results show in ps, inspect
// and events, with both clients; options of the command line replace its parts.
func TestHealthCheck(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	img, err := imagetest.Busybox("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cfg.DeepCopy().Config
	c.User = "1000"
	c.Healthcheck = &v1.HealthConfig{
		Test:     []string{"CMD-SHELL", "echo checked by $(id -u); test -e /tmp/well"},
		Interval: 100 * time.Millisecond, Retries: 2,
	}
	if img, err = mutate.Config(img, c); err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "checked.tar")
	if err := imagetest.Archive(tar, "checked", img); err != nil {
		t.Fatal(err)
	}
	h.sampan(t, "load", "-q", "-i", tar)
	status := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, want, func() bool {
			return strings.HasSuffix(h.sampan(t, "ps", "--format", "{{.Status}}"), "("+want+")\n")
		})
	}
	h.must(t, "docker", "run", "-d", "--name", "web", "checked")
	status("unhealthy")
	h.sampan(t, "exec", "web", "touch", "/tmp/well")
	status("healthy")
	if out := h.must(t, "docker", "inspect", "-f", "{{json (index .State.Health.Log 0)}}", "web"); !strings.Contains(out, `"ExitCode":1,"Output":"checked by 1000\n"`) && !strings.Contains(out, `"ExitCode":0,"Output":"checked by 1000\n"`) {
		t.Errorf("log: %s", out)
	}
	out := h.must(t, "docker", "events", "--since", "1h", "--until", time.Now().Add(time.Second).Format(time.RFC3339Nano), "-f", "event=health_status", "--format", "{{.Action}} {{.Actor.Attributes.name}}")
	if out != "health_status: unhealthy web\nhealth_status: healthy web\n" {
		t.Errorf("events: %q", out)
	}
	h.sampan(t, "rm", "-f", "web")

	// Too long: killed, and said so. Its image's interval holds.
	h.sampan(t, "run", "-d", "--name", "slow", "--health-cmd", "echo begun; sleep 1000", "--health-timeout", "3s", "--health-retries", "1", "checked")
	status("unhealthy")
	if out := h.sampan(t, "inspect", "-f", "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}", "slow"); out != "-1 Health check exceeded timeout (3s): begun\n\n" {
		t.Errorf("slow: %q", out)
	}
	h.sampan(t, "rm", "-f", "slow")

	h.sampan(t, "run", "-d", "--name", "off", "--no-healthcheck", "checked")
	if out := h.sampan(t, "ps", "--format", "{{.Status}}"); strings.Contains(out, "(") {
		t.Errorf("--no-healthcheck: %s", out)
	}
	if r := h.try(t, "", "sampan", "run", "--no-healthcheck", "--health-cmd", "true", "checked"); r.code != 125 || !strings.Contains(r.stderr, "--no-healthcheck conflicts with --health-* options") {
		t.Errorf("%+v", r)
	}
}
