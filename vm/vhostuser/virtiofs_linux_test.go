package vhostuser

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// stuck is a file server whose requests hang until they are let go.
type stuck struct{ begun, let chan struct{} }

func (s stuck) HandleRequest(in, out [][]byte) (int, fuse.Status) {
	s.begun <- struct{}{}
	<-s.let
	return 0, fuse.OK
}

// TestFSHangs has many requests hang in the host: others of the ring are worked
// on all the same, and all are answered in the end.
func TestFSHangs(t *testing.T) {
	s := stuck{make(chan struct{}), make(chan struct{})}
	f := serve(t, NewFS(s, 1), 0)
	f.start(0) // the urgent ring
	f.start(0)
	const requests = ringSize - 4
	for i := range requests {
		f.offer(1, i, 100, 0)
		select {
		case <-s.begun:
		case <-time.After(10 * time.Second):
			t.Fatalf("request %d waits for those that hang", i)
		}
	}
	close(s.let)
	seen := map[int]bool{}
	for range requests {
		slot, n := f.used(1)
		if seen[slot] || n != 0 {
			t.Errorf("slot %d: %d bytes, or answered twice", slot, n)
		}
		seen[slot] = true
	}
	for i := range requests { // and the ring goes on
		f.offer(1, i, 100, 0)
		<-s.begun
		f.used(1)
	}
	if base := f.stopRing(1); base != 2*requests {
		t.Errorf("the ring stops at %d, want %d", base, 2*requests)
	}
}
