package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Queue is one run of a ring, from its start to its stop. Push may be called
// from several goroutines and in any order of chains; Pop and Unpop from one at a
// time.
type Queue struct {
	index    int
	fresh    bool
	eventIdx bool
	kick     *os.File // the transport closes it after the run
	done     chan struct{}
	served   chan struct{} // closed when Serve has returned

	mu        sync.Mutex
	idle      sync.Cond // inflight == 0
	mem       *memory
	ring      ring
	addr      ringAddr
	call      int // eventfd of the transport, -1 without one
	lastAvail uint16
	usedIdx   uint16
	notified  uint16 // usedIdx when the guest was last considered for an interrupt
	inflight  int
	stopped   bool
	later     *time.Timer // calls notify while laterOn; nil until it is needed
	laterOn   bool
}

// notifyWithin is how long notifyLater may keep an interrupt.
const notifyWithin = 5 * time.Millisecond

// Index is the ring's number in the device.
func (q *Queue) Index() int { return q.index }

// Fresh tells whether the ring starts from nothing: the guest's driver has set
// it up anew, and has forgotten what went through an earlier run. After a
// pause it is false.
func (q *Queue) Fresh() bool { return q.fresh }

// Done is closed when the ring stops.
func (q *Queue) Done() <-chan struct{} { return q.done }

// Pop returns the next chain that the guest has made available, and waits for
// one. It fails with ErrStopped after the ring has stopped, and with another
// error when the guest broke the rules of the ring, which can't be recovered.
func (q *Queue) Pop() (*Chain, error) {
	for {
		if c, err := q.tryPop(); c != nil || err != nil {
			return c, err
		}
		if err := q.wait(); err != nil {
			return nil, err
		}
	}
}

// wait returns when the guest may have made a chain available since tryPop has
// found none, or after wake; with ErrStopped when the ring has stopped.
func (q *Queue) wait() error {
	var count [8]byte
	// A stop ends the wait by the deadline, and may close the descriptor before
	// we have noticed.
	_, err := q.kick.Read(count[:])
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("queue %d: wait for a kick: %w", q.index, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return ErrStopped
	}
	return nil
}

// wake ends the wait of another goroutine, or the next one: it kicks in the
// guest's place.
func (q *Queue) wake() {
	one := [8]byte{1}
	_, _ = q.kick.Write(one[:]) // after a stop it is closed, and nobody waits
}

// tryPop returns nil when the ring is empty; the guest's next chain then comes
// with a kick.
func (q *Queue) tryPop() (*Chain, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return nil, ErrStopped
	}
	pending := q.ring.availIdx() - q.lastAvail
	if pending == 0 {
		q.wantKicks()
		if pending = q.ring.availIdx() - q.lastAvail; pending == 0 {
			return nil, nil
		}
	}
	if !q.eventIdx {
		q.ring.setUsedFlags(usedNoNotify)
	}
	if pending > q.ring.num {
		return nil, fmt.Errorf("queue %d: %w: %d chains available in a ring of %d", q.index, errRing, pending, q.ring.num)
	}
	c, err := q.ring.chain(q.mem, q.ring.availHead(q.lastAvail))
	if err != nil {
		return nil, fmt.Errorf("queue %d: %w", q.index, err)
	}
	q.lastAvail++
	q.inflight++
	c.mem = q.mem.acquire()
	return c, nil
}

// wantKicks asks the guest for a kick with its next chain.
func (q *Queue) wantKicks() {
	if q.eventIdx {
		q.ring.setAvailEvent(q.lastAvail)
	} else {
		q.ring.setUsedFlags(0)
	}
}

// Push returns c to the guest, with written bytes filled from the beginning of
// c.Writable, and interrupts the guest if it wants that. c must not be used
// afterwards. After a stop that did not wait for c, the chain is dropped.
func (q *Queue) Push(c *Chain, written int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.put(c, written)
	q.notifyLocked()
}

// pushQuietly is Push without the interrupt: notify or notifyLater must follow.
func (q *Queue) pushQuietly(c *Chain, written int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.put(c, written)
}

func (q *Queue) put(c *Chain, written int) {
	defer q.finish(c)
	if q.mem == nil {
		return
	}
	q.ring.putUsed(q.usedIdx, c.head, uint32(written))
	q.usedIdx++
	q.ring.setUsedIdx(q.usedIdx)
}

// notify interrupts the guest if it wants that for what was returned since it
// was last asked.
func (q *Queue) notify() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notifyLocked()
}

func (q *Queue) notifyLocked() {
	old := q.notified
	if q.notified = q.usedIdx; q.mem != nil && old != q.usedIdx && q.wantsInterrupt(old) {
		q.interrupt()
	}
}

// notifyLater is notify for chains that the guest is in no hurry to have back:
// one interrupt for a quarter of the ring, or for what has come together within
// notifyWithin. An interrupt costs the guest more than all that the device does
// for a packet.
func (q *Queue) notifyLater() {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.stopped || q.usedIdx-q.notified >= q.ring.num/4:
		q.notifyLocked()
	case q.laterOn:
	case q.later == nil:
		q.laterOn = true
		q.later = time.AfterFunc(notifyWithin, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.laterOn = false
			q.notifyLocked()
		})
	default:
		q.laterOn = true
		q.later.Reset(notifyWithin)
	}
}

// Unpop gives back the chain that was popped last, unused: the next Pop, of
// this run or the next, returns it again.
func (q *Queue) Unpop(c *Chain) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.finish(c)
	q.lastAvail--
}

// finish lets go of a chain.
func (q *Queue) finish(c *Chain) {
	c.mem.release()
	*c = Chain{}
	if q.inflight--; q.inflight == 0 {
		q.idle.Broadcast()
	}
}

// wantsInterrupt is asked after usedIdx has gone up, from old.
func (q *Queue) wantsInterrupt(old uint16) bool {
	if q.eventIdx { // the guest named the one to be told of (virtio 1.2, 2.7.7.2)
		return q.usedIdx-q.ring.usedEvent()-1 < q.usedIdx-old
	}
	return q.ring.availFlags()&availNoInterrupt == 0
}

func (q *Queue) interrupt() {
	if q.call < 0 {
		return
	}
	one := [8]byte{1} // an eventfd adds it; it can't be full, nor does it matter
	_, _ = unix.Write(q.call, one[:])
}

// setCall changes the eventfd for interrupts, and raises one: what was returned
// in between may have found none.
func (q *Queue) setCall(fd int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.call = fd
	if !q.stopped {
		q.interrupt()
	}
}

// setMemory moves the ring to a new map of the guest's memory.
func (q *Queue) setMemory(m *memory) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, err := mapRing(m, q.ring.num, q.addr)
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	old := q.mem
	q.mem, q.ring = m.acquire(), r
	old.release()
	return nil
}

// signalStop makes Pop fail.
func (q *Queue) signalStop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return
	}
	q.stopped = true
	close(q.done)
	q.notifyLocked()
	if q.later != nil {
		q.later.Stop()
	}
	// Fails only when the descriptor is no eventfd, and then Pop never waits.
	_ = q.kick.SetReadDeadline(time.Unix(1, 0))
}

// detach waits, at most for the given time, until no chain is out, and lets go
// of the guest's memory. It returns where the next run begins, and how many
// chains are still out: what they write is lost.
func (q *Queue) detach(patience time.Duration) (base uint16, lost int) {
	late := false
	t := time.AfterFunc(patience, func() {
		q.mu.Lock()
		late = true
		q.idle.Broadcast()
		q.mu.Unlock()
	})
	defer t.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.inflight > 0 && !late {
		q.idle.Wait()
	}
	if q.mem != nil {
		q.mem.release()
		q.mem, q.ring = nil, ring{}
	}
	return q.lastAvail, q.inflight
}
