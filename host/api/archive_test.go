package api_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/host/engine"
	"sampan/proto"
)

// A client that stands still in the middle of a copy does not keep its
// container, which does not run, from being removed.
func TestRemoveDuringCopy(t *testing.T) {
	d := start(t)
	remove := func(name string) {
		t.Helper()
		removed := make(chan error, 1)
		go func() { removed <- d.engine.Remove(context.Background(), name, engine.RemoveOptions{Force: true}) }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		select {
		case err := <-removed:
			if err != nil {
				t.Errorf("remove %s: %v", name, err)
			}
		case <-ctx.Done():
			t.Fatalf("remove %s: hangs", name)
		}
	}

	d.ok("create", "--name", "from", "img")
	rc, err := d.engine.Export(t.Context(), "from")
	if err != nil {
		t.Fatal(err)
	}
	remove("from") // while nobody reads
	if _, err := io.Copy(io.Discard, rc); err == nil {
		t.Error("a copy of a container that was removed came to its end")
	}
	rc.Close()

	d.ok("create", "--name", "to", "img")
	r, w := io.Pipe()
	copied := make(chan error, 1)
	go func() { copied <- d.engine.CopyTo(t.Context(), "to", "/", r, engine.CopyOptions{}) }()
	if _, err := w.Write(make([]byte, 100)); err != nil { // the copy is under way
		t.Fatal(err)
	}
	remove("to") // while nobody writes
	w.Close()
	if err := <-copied; err == nil {
		t.Error("a copy to a container that was removed came to its end")
	}

	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	if d.machine.holds != 0 {
		t.Errorf("%d holds of the machine are left", d.machine.holds)
	}
}

// A container that can't be paused is not committed as if it had been; one that
// does not run, or stands still already, need not be.
func TestCommitPauses(t *testing.T) {
	d := start(t)
	d.ok("run", "-d", "--name", "aa", "img", "sleep")
	g := d.machine.running()
	g.mu.Lock()
	g.freezeErr = errGone
	g.mu.Unlock()
	if c, err := d.engine.Commit(t.Context(), "aa", &container.Config{}, true); err == nil {
		c.Close()
		t.Error("committed, though it was not paused")
	}
	// It may end while it is being paused.
	g.freezeErr = status.Error(codes.FailedPrecondition, "container aa is not running")
	id := strings.TrimSpace(d.inspect("aa", "{{.Id}}"))
	g.beforeFreeze = func() { g.Signal(t.Context(), &proto.SignalRequest{Container: id, Signal: 9}) }
	c, err := d.engine.Commit(t.Context(), "aa", &container.Config{}, true)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := d.status("aa"); got != "exited" {
		t.Errorf("it is %s", got)
	}
	c, err = d.engine.Commit(t.Context(), "aa", &container.Config{}, true)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
