package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
)

// TestExecExpires: an exec that nobody starts is forgotten, one that runs is
// not.
func TestExecExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{execs: map[string]*exec{}}
		var ids [2]string
		for i := range ids {
			x, err := e.addExec(nil, container.ExecCreateRequest{Cmd: []string{"true"}})
			if err != nil {
				t.Fatal(err)
			}
			x.started, ids[i] = i == 1, x.id
		}
		time.Sleep(execKept - time.Second)
		if _, err := e.findExec(ids[0]); err != nil {
			t.Errorf("too early: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := e.findExec(ids[0]); err == nil {
			t.Error("an exec that was never started is kept")
		}
		if _, err := e.findExec(ids[1]); err != nil {
			t.Errorf("a running exec is gone: %v", err)
		}
	})
}
