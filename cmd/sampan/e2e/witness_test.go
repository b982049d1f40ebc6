package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	moby "github.com/moby/moby/client"

	"sampan/host/witness"
)

// copyDescriptions puts Docker's description of its API where everybody can read
// it.
func copyDescriptions(dir string) error {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		return fmt.Errorf("find the API's module: %w", err)
	}
	all, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(module)), "docs", "v1.*.yaml"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// described is read once: each version takes a moment.
var described = sync.OnceValues(func() (*witness.API, error) {
	return witness.Open(filepath.Join(files.dir, "api"), moby.MaxAPIVersion)
})

// listen puts a witness before the home's daemon. What it objects to fails the
// test, but for the exceptions listed with it.
func (h *home) listen(t testing.TB) {
	t.Helper()
	api, err := described()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.witnessed(), 0o700); err != nil {
		t.Fatal(err)
	}
	h.witness = &witness.Proxy{Socket: filepath.Join(h.dir, "docker.sock"), API: api}
	if err := h.witness.Listen(filepath.Join(h.witnessed(), "docker.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the witness has been closed
		for _, f := range h.witness.Unexpected() {
			t.Errorf("against Docker's description of its API: %s", f)
		}
		if t.Failed() {
			t.Logf("requests:\n%s", strings.Join(h.witness.Requests(), "\n"))
		}
	})
}

// witnessed is a home with nothing in it but the witness's socket.
func (h *home) witnessed() string { return filepath.Join(filepath.Dir(h.dir), "seen") }

// clientHome is what sampan takes for its home.
func (h *home) clientHome() string {
	if h.watched {
		return h.witnessed()
	}
	return h.dir
}
