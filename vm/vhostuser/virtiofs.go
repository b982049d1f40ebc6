package vhostuser

import (
	"errors"
	"sync"
	"sync/atomic"

	"sampan/vm"
)

// fsWorkers is how many requests of one ring are worked on at once, at most. More
// wait in the ring: a host's file system that hangs costs this many threads, and
// then the ring.
const fsWorkers = 128

// FS is the virtio-fs device (virtio 1.2, 5.11): it carries FUSE requests, as
// the guest's kernel puts them into the rings, to a server. Ring 0 is for
// requests that must not wait behind others (FORGET), the rest for all others.
//
// The name that the guest mounts is the front end's: QEMU 7.2 keeps the
// configuration space of vhost-user-fs-pci to itself.
type FS struct {
	server vm.FUSEServer
	queues int
}

// NewFS makes a device with as many request rings as the front end was told of.
func NewFS(server vm.FUSEServer, requestQueues int) *FS {
	return &FS{server: server, queues: 1 + requestQueues}
}

// Features of the device: none are reachable from here.
func (d *FS) Features() uint64 { return 0 }

// Queues are the urgent ring and the request rings.
func (d *FS) Queues() int { return d.queues }

// Config is the front end's.
func (d *FS) Config() []byte { return nil }

// Serve answers the requests of one ring until it stops, and then what it has
// taken from it.
//
// The workers take turns at waiting for a request: the one that gets it works
// on it at once, with no hand-over, while the next waits. When nobody is left to
// wait there is one more of them.
func (d *FS) Serve(q *Queue) error {
	var (
		turn    sync.Mutex
		failed  error // by turn
		waiting atomic.Int64
		workers atomic.Int64
		all     sync.WaitGroup
		work    func()
	)
	pop := func() *Chain {
		waiting.Add(1)
		defer waiting.Add(-1)
		turn.Lock()
		defer turn.Unlock()
		if failed != nil {
			return nil
		}
		var c *Chain
		c, failed = q.Pop()
		return c
	}
	hire := func() {
		if workers.Add(1) <= fsWorkers {
			all.Go(work)
		}
	}
	work = func() {
		for c := pop(); c != nil; c = pop() {
			if waiting.Load() == 0 {
				hire()
			}
			// A request that can't be answered is given back empty.
			n, _ := d.server.HandleRequest(c.Readable, c.Writable)
			q.Push(c, n)
		}
	}
	hire()
	all.Wait()
	if errors.Is(failed, ErrStopped) {
		return nil
	}
	return failed
}
