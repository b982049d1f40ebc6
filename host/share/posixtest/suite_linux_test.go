package posixtest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This binary then runs in a container.
const (
	dirEnv  = "SAMPAN_POSIX_DIR"  // names the folder for TestFolder
	lockEnv = "SAMPAN_POSIX_LOCK" // names the file for TestLock
	holdEnv = "SAMPAN_POSIX_HOLD" // not empty: TestLock keeps its locks
)

// TestLocal shows that a local file system passes.
func TestLocal(t *testing.T) { Run(t, t.TempDir()) }

// TestFolder runs the suite in a shared folder; cmd/sampan/e2e calls it.
func TestFolder(t *testing.T) {
	dir := os.Getenv(dirEnv)
	if dir == "" {
		t.Skipf("%s names no folder: the end-to-end tests run this in a container", dirEnv)
	}
	Run(t, dir)
}

// TestLock prints what comes of a flock and of a record lock (fcntl) of a file;
// cmd/sampan/e2e calls it in several containers, and kills the one that holds
// them.
func TestLock(t *testing.T) {
	path := os.Getenv(lockEnv)
	if path == "" {
		t.Skipf("%s names no file: the end-to-end tests run this in containers", lockEnv)
	}
	fd := open(t, path, unix.O_RDWR|unix.O_CREAT, 0o666)
	whole := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	record := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10})
	fmt.Printf("flock: %v, record: %v\n", whole, record)
	if os.Getenv(holdEnv) != "" {
		time.Sleep(time.Hour)
	}
}
