package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script/*.txtar, each in a home of its own, as a user
// would type them. Commands beside testscript's own:
//
//	exits N COMMAND ...   the command must end with exit code N
//	eventually COMMAND …  repeated until it succeeds, for 10 s
//	fetch URL             GET; the body becomes stdout
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join(files.dir, "testdata", "script", "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, s := range scripts {
		switch filepath.Base(s) {
		case "commit.txtar", "exit.txtar", "flags.txtar", "options.txtar", "usage.txtar":
			if os.Geteuid() == 0 && os.Getenv("SAMPAN_AS_ROOT") == "" {
				continue // as in onceAsUser: nothing in them depends on the user
			}
		}
		h := newHome(t)
		h.load(t)
		h.record()
		registry := ""
		if filepath.Base(s) == "tutorial.txtar" {
			registry = startRegistry(t)
		}
		testscript.Run(t, testscript.Params{
			Files: []string{s},
			Setup: func(e *testscript.Env) error {
				for _, kv := range h.environ() {
					if k, v, ok := strings.Cut(kv, "="); ok && k != "TMPDIR" {
						e.Setenv(k, v)
					}
				}
				e.Setenv("PORT", strconv.Itoa(freePort(t)))
				e.Setenv("PORT2", strconv.Itoa(freePort(t)))
				e.Setenv("DAEMON_HOME", h.dir) // SAMPAN_HOME is the witness's
				e.Setenv("BUSYBOX", files.busybox)
				e.Setenv("REGISTRY", registry)
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"exits": exits, "eventually": repeat, "fetch": fetch,
			},
			RequireExplicitExec: true,
		})
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N COMMAND ...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
