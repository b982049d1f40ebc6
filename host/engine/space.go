package engine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// lowSpace is how many free bytes the disk of the home has at least while nobody is
// warned: with less containers soon fail, with errors of their own.
const lowSpace = 2 << 30

// spaceWarnings tells that the home's disk is nearly full.
func (e *Engine) spaceWarnings() []string {
	var st unix.Statfs_t
	if err := unix.Statfs(e.cfg.Home, &st); err != nil {
		return []string{fmt.Sprintf("free space in %s: %v", e.cfg.Home, err)}
	}
	return spaceWarning(e.cfg.Home, uint64(st.Bavail)*uint64(st.Bsize))
}

func spaceWarning(home string, free uint64) []string {
	if free >= lowSpace {
		return nil
	}
	return []string{fmt.Sprintf("The disk of %s is nearly full: %d MiB are free. Containers fail when there are none; `system prune` and `system df` help.", home, free>>20)}
}
