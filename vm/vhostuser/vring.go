package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// vring returns a ring by the index of a message.
func (s *server) vring(i int) (*vring, error) {
	if i >= len(s.rings) {
		return nil, fmt.Errorf("ring %d of %d", i, len(s.rings))
	}
	return &s.rings[i], nil
}

var errRunning = errors.New("the ring is running")

func (s *server) setVring(m *message) error {
	i, v, err := m.state()
	if err != nil {
		return err
	}
	r, err := s.vring(i)
	if err != nil {
		return err
	}
	if m.req == reqSetVringEnable {
		if r.enabled = v != 0; !r.enabled {
			s.stop(i)
			return nil
		}
		return s.start(i)
	}
	if r.run != nil {
		return errRunning
	}
	if m.req == reqSetVringNum {
		r.num = v
	} else {
		r.base = uint16(v)
	}
	return nil
}

// setVringAddr takes {index u32, flags u32, descriptors u64, used u64,
// available u64, log u64}.
func (s *server) setVringAddr(m *message) error {
	if len(m.payload) != 40 {
		return fmt.Errorf("payload of %d bytes", len(m.payload))
	}
	r, err := s.vring(int(binary.LittleEndian.Uint32(m.payload)))
	if err != nil {
		return err
	}
	if r.run != nil {
		return errRunning
	}
	r.addr = ringAddr{
		desc:  binary.LittleEndian.Uint64(m.payload[8:]),
		used:  binary.LittleEndian.Uint64(m.payload[16:]),
		avail: binary.LittleEndian.Uint64(m.payload[24:]),
	}
	r.mapped = true
	return nil
}

func (s *server) setVringFD(m *message) error {
	i, fd, err := m.takeFD()
	if err != nil {
		return err
	}
	r, err := s.vring(i)
	if err != nil || m.req == reqSetVringErr {
		closeFD(fd)
		return err
	}
	if m.req == reqSetVringCall {
		return r.setCall(fd)
	}
	s.stop(i)
	if err := r.setKick(fd); err != nil {
		return err
	}
	return s.start(i)
}

// setCall takes over fd, which may be -1.
func (r *vring) setCall(fd int) error {
	if fd >= 0 {
		if err := unix.SetNonblock(fd, true); err != nil {
			closeFD(fd)
			return fmt.Errorf("interrupt descriptor: %w", err)
		}
	}
	if r.run != nil {
		r.run.setCall(fd)
	}
	closeFD(r.call)
	r.call = fd
	return nil
}

// setKick takes over fd.
func (r *vring) setKick(fd int) error {
	if fd < 0 {
		return errors.New("ring without a kick descriptor: polling is not supported")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		closeFD(fd)
		return fmt.Errorf("kick descriptor: %w", err)
	}
	// Non-blocking, so that it joins Go's poller; stop depends on that.
	f := os.NewFile(uintptr(fd), "kick")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return fmt.Errorf("kick descriptor: %w", err)
	}
	r.closeKick()
	r.kick = f
	return nil
}

func (r *vring) closeKick() {
	if r.kick != nil {
		r.kick.Close()
		r.kick = nil
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

// start runs the ring if all that it needs is there.
func (s *server) start(i int) error {
	r := &s.rings[i]
	if r.run != nil || !r.enabled || r.kick == nil || !r.mapped || s.mem == nil {
		return nil
	}
	ring, err := mapRing(s.mem, uint16(min(r.num, 0xffff)), r.addr)
	if err != nil {
		return fmt.Errorf("ring %d: %w", i, err)
	}
	if err := r.kick.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("ring %d: %w", i, err)
	}
	q := &Queue{
		index:     i,
		fresh:     r.base == 0 && ring.usedIdx() == 0,
		eventIdx:  s.features&featureEventIdx != 0,
		kick:      r.kick,
		done:      make(chan struct{}),
		served:    make(chan struct{}),
		mem:       s.mem.acquire(),
		ring:      ring,
		addr:      r.addr,
		call:      r.call,
		lastAvail: r.base,
		usedIdx:   ring.usedIdx(),
		notified:  ring.usedIdx(),
	}
	q.idle.L = &q.mu
	r.run = q
	s.runs.Go(func() {
		defer close(q.served)
		err := s.dev.Serve(q)
		if err != nil && !errors.Is(err, ErrStopped) {
			s.fail(err)
		}
	})
	return nil
}

// stop ends the ring's run and remembers where the next one begins. It waits
// for the device to be done with the run, so that two never overlap, but not
// for longer than the guest can stand still.
func (s *server) stop(i int) {
	r := &s.rings[i]
	if r.run == nil {
		return
	}
	begin := time.Now()
	r.run.signalStop()
	base, lost := r.run.detach(stopPatience)
	select {
	case <-r.run.served:
	case <-time.After(stopPatience - time.Since(begin)):
		s.log.Warn("virtqueue stopped with requests under way", "queue", i, "requests", lost)
	}
	r.base, r.run = base, nil
}

func (s *server) getVringBase(m *message) error {
	i, _, err := m.state()
	if err != nil {
		return err
	}
	r, err := s.vring(i)
	if err != nil {
		return err
	}
	s.stop(i)
	r.closeKick()
	return m.replyUint64(s.conn, uint64(i)|uint64(r.base)<<32)
}

// signalStop ends the ring's run without waiting.
func (r *vring) signalStop() {
	if r.run != nil {
		r.run.signalStop()
	}
}

// release closes what the ring holds; its run, if any, has ended.
func (r *vring) release() {
	if r.run != nil {
		r.run.detach(0)
	}
	r.closeKick()
	closeFD(r.call)
	r.call = -1
}
