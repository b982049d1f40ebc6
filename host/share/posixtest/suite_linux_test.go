package posixtest

import (
	"os"
	"testing"
)

// dirEnv names the folder for TestFolder: this binary then runs in a container.
const dirEnv = "SAMPAN_POSIX_DIR"

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
