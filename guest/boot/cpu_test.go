package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOnlineCPUs(t *testing.T) {
	root := t.TempDir()
	for name, state := range map[string]string{"cpu0": "1\n", "cpu1": "0\n", "cpu10": "0\n"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name, "online"), []byte(state), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := onlineCPUs(root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"cpu0": "1\n", "cpu1": "1", "cpu10": "1"} {
		if got, err := os.ReadFile(filepath.Join(root, name, "online")); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestEnableQuota(t *testing.T) {
	root := t.TempDir()
	for range 2 { // a cgroup that is there already is fine
		if err := enableQuota(root); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"cgroup.subtree_control": "+cpu", "quota/cpu.max": "1000000 1000000"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}
