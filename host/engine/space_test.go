package engine

import (
	"strings"
	"testing"
)

func TestSpaceWarning(t *testing.T) {
	if got := spaceWarning("/home", lowSpace); got != nil {
		t.Errorf("enough: %q", got)
	}
	if got := spaceWarning("/home", lowSpace-1); len(got) != 1 || !strings.Contains(got[0], "/home") || !strings.Contains(got[0], "2047 MiB") {
		t.Errorf("nearly full: %q", got)
	}
}
