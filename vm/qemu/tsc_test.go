package qemu

import (
	"runtime"
	"strings"
	"testing"

	"sampan/vm"
)

// TestHertz: the counter's frequency is a processor's, and the same each time, or it
// is not known and the kernel is told nothing.
func TestHertz(t *testing.T) {
	first, second := readClocks().hertz(), readClocks().hertz()
	t.Logf("%.0f and %.0f MHz", first/1e6, second/1e6)
	if runtime.GOARCH != "amd64" {
		if first != 0 || second != 0 {
			t.Errorf("on %s: %v, %v", runtime.GOARCH, first, second)
		}
	} else if first < second/2 || second < first/2 || first < 1e8 || first > 1e11 {
		t.Errorf("got %.0f and %.0f", first, second)
	}
	cfg := vm.Config{Kernel: "/k", Initrd: "/i", CPUs: 1, Memory: 64 << 20}
	for hertz, want := range map[float64]bool{0: false, 2e9: true} {
		if got := strings.Contains(strings.Join(argv(cfg, boards()["amd64"], tcg, hertz, wires{}), " "), "lpj="); got != want {
			t.Errorf("at %v Hz lpj is given: %v", hertz, got)
		}
	}
}
