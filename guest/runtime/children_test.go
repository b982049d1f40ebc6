package runtime

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReapOrphan: a process whose owner has been quicker ended Run once, and
// after that orphans stayed zombies.
func TestReapOrphan(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := reapOrphan(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	cmd = exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := reapOrphan(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not reaped")
	}
}

// TestChildrenAway: a process is started while this one is away from home.
func TestChildrenAway(t *testing.T) {
	away := 0
	kids := Children{Away: func() func() { away++; return func() { away-- } }}
	pid, err := kids.Start(func() (int, error) {
		if away != 1 {
			t.Errorf("away %d times when it starts, want once", away)
		}
		return 1, nil
	})
	if pid != 1 || err != nil || away != 0 {
		t.Errorf("started %d, %v, still away: %d", pid, err, away)
	}
}
