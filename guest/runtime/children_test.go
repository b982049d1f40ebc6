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

// TestChildrenStarter: what starts a process is called by the starter.
func TestChildrenStarter(t *testing.T) {
	inside := false
	kids := Children{Starter: func(start func() (int, error)) (int, error) {
		inside = true
		defer func() { inside = false }()
		return start()
	}}
	pid, err := kids.Start(func() (int, error) {
		if !inside {
			t.Error("started without the starter")
		}
		return 1, nil
	})
	if pid != 1 || err != nil || !kids.Owned(1) {
		t.Errorf("started %d, %v, owned: %v", pid, err, kids.Owned(1))
	}
}
