package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/docker/go-units"
)

// A disk with holes takes what was written of it.
func TestAllocated(t *testing.T) {
	home := t.TempDir()
	for _, dir := range []string{"images/layers", "containers/x"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{"images/layers/a": 3 << 20, "containers/x/log": 5000, "data.img": 1 << 20} {
		if err := os.WriteFile(filepath.Join(home, name), bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(home, "data.img"), 64<<30); err != nil {
		t.Fatal(err)
	}
	rows, err := allocated(home)
	if err != nil || len(rows) != 3 {
		t.Fatal(rows, err)
	}
	for i, want := range []allocatedRow{{"Images", "3.146MB", ""}, {"Data disk (containers, volumes)", "68.72GB", ""}, {"Logs, records and others", "5kB", ""}} {
		if rows[i].What != want.What || rows[i].Logical != want.Logical {
			t.Errorf("got %+v, want %+v", rows[i], want)
		}
	}
	if n, err := units.FromHumanSize(rows[1].Allocated); err != nil || n < 1<<20-1000 || n > 8<<20 {
		t.Errorf("the data disk takes %s", rows[1].Allocated)
	}
	if n, err := units.FromHumanSize(rows[0].Allocated); err != nil || n < 3<<20-1000 {
		t.Errorf("images take %s", rows[0].Allocated)
	}
}
