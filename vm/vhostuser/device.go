package vhostuser

import "errors"

// Device is a virtio device behind a vhost-user front end. If it is an
// io.Closer too, the transport closes it as soon as the front end is gone,
// before it waits for Serve.
type Device interface {
	// Features are the device's own feature bits. The transport adds
	// VERSION_1, EVENT_IDX, INDIRECT_DESC and the bits of vhost-user.
	Features() uint64
	// Queues is the number of virtqueues that reach the back end.
	Queues() int
	// Config is the configuration space; nil when the front end has its own
	// (virtio-fs on QEMU 7.2).
	Config() []byte
	// Serve works on one run of one ring, in a goroutine of its own, until
	// q.Pop fails with ErrStopped; it returns when nothing that it started
	// uses q any more. Any error but ErrStopped and nil ends the device.
	Serve(q *Queue) error
}

// ErrStopped is what Pop returns once its ring has stopped: the guest's driver
// is gone, the machine is paused, or the front end has ended.
var ErrStopped = errors.New("ring stopped")

// Chain is one buffer that the guest offers: a request to read, room for the
// answer, or both. The slices are the guest's memory: they change under the
// reader, and are valid until the Chain is given to Push (or Unpop).
type Chain struct {
	// Readable is what the guest sends, in order.
	Readable [][]byte
	// Writable is what the guest wants filled, in order.
	Writable [][]byte

	head uint16  // descriptor that names the chain in the used ring
	mem  *memory // keeps the slices mapped
}

// ReadableLen is the length of c.Readable in bytes.
func (c *Chain) ReadableLen() int { return total(c.Readable) }

// WritableLen is the length of c.Writable in bytes.
func (c *Chain) WritableLen() int { return total(c.Writable) }

func total(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}
