package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stopPatience is how long a stopping ring waits for the chains that are out.
// The front end, and with it the guest, stands still meanwhile.
const stopPatience = 5 * time.Second

// Serve speaks vhost-user for dev on conn, our end of a connected pair of UNIX
// stream sockets, until the front end closes its end (nil), the device fails,
// or somebody closes conn. It closes conn, and returns when all that it started
// has ended.
//
// Serve must run before QEMU starts with the other end
// (-chardev socket,id=ID,fd=N, without reconnect=).
func Serve(conn *net.UnixConn, dev Device, log *slog.Logger) error {
	s := &server{conn: conn, dev: dev, log: log, rings: make([]vring, dev.Queues())}
	for i := range s.rings {
		s.rings[i].call = -1
		s.rings[i].enabled = true // until SET_FEATURES says otherwise
	}
	err := s.loop()
	conn.Close()
	if c, ok := dev.(io.Closer); ok {
		c.Close()
	}
	for i := range s.rings {
		s.rings[i].signalStop()
	}
	s.runs.Wait()
	for i := range s.rings {
		s.rings[i].release()
	}
	if s.mem != nil {
		s.mem.release()
	}
	s.failed.Lock()
	defer s.failed.Unlock()
	if s.devErr != nil {
		return s.devErr
	}
	return err
}

// server is one conversation with a front end. Only loop's goroutine uses it,
// but for runs and devErr.
type server struct {
	conn     *net.UnixConn
	dev      Device
	log      *slog.Logger
	features uint64 // that the front end has accepted
	protocol uint64
	mem      *memory
	rings    []vring

	runs   sync.WaitGroup // goroutines in dev.Serve
	failed sync.Mutex
	devErr error // why the device has failed
}

// vring is what the front end has told about a ring.
type vring struct {
	num     uint32
	base    uint16
	addr    ringAddr
	mapped  bool // addr is set
	enabled bool
	kick    *os.File
	call    int
	run     *Queue // nil while stopped
}

func (s *server) loop() error {
	for {
		m, err := readMessage(s.conn)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("vhost-user: %w", err)
		}
		err = s.handle(m)
		m.close()
		if err != nil {
			return fmt.Errorf("vhost-user: request %d: %w", m.req, err)
		}
	}
}

// handle answers one message. Requests with an answer of their own reply by
// themselves, the others get an acknowledgement if the front end wants one.
func (s *server) handle(m *message) error {
	switch m.req {
	case reqGetFeatures:
		return m.replyUint64(s.conn, s.offered())
	case reqGetProtocolFeatures:
		return m.replyUint64(s.conn, s.offeredProtocol())
	case reqGetQueueNum:
		return m.replyUint64(s.conn, uint64(len(s.rings)))
	case reqGetConfig:
		return s.getConfig(m)
	case reqGetVringBase:
		return s.getVringBase(m)
	}
	if err := s.set(m); err != nil {
		return err
	}
	if m.flags&flagNeedReply != 0 && s.protocol&protocolReplyAck != 0 {
		return m.replyUint64(s.conn, 0)
	}
	return nil
}

func (s *server) offered() uint64 {
	return s.dev.Features() | featureVersion1 | featureProtocol | featureEventIdx | featureIndirect
}

func (s *server) offeredProtocol() uint64 {
	f := uint64(protocolMQ | protocolReplyAck)
	if s.dev.Config() != nil {
		f |= protocolConfig
	}
	return f
}

// set handles the requests that change something.
func (s *server) set(m *message) error {
	switch m.req {
	case reqSetOwner, reqSetConfig:
		return nil // one owner; no configuration of ours is writable
	case reqResetOwner:
		for i := range s.rings {
			s.stop(i)
		}
		return nil
	case reqSetFeatures:
		return s.setFeatures(m)
	case reqSetProtocolFeatures:
		v, err := m.uint64()
		s.protocol = v & s.offeredProtocol()
		return err
	case reqSetMemTable:
		return s.setMemTable(m)
	case reqSetVringNum, reqSetVringBase, reqSetVringEnable:
		return s.setVring(m)
	case reqSetVringAddr:
		return s.setVringAddr(m)
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return s.setVringFD(m)
	}
	return errors.New("unknown request")
}

func (s *server) setFeatures(m *message) error {
	v, err := m.uint64()
	if err != nil {
		return err
	}
	if extra := v &^ s.offered(); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	if v&featureVersion1 == 0 {
		return errors.New("the guest's driver knows only virtio before 1.0")
	}
	s.features = v
	for i := range s.rings {
		if r := &s.rings[i]; r.run == nil {
			r.enabled = v&featureProtocol == 0
		}
	}
	return nil
}

// getConfig answers {offset u32, size u32, flags u32, size bytes}.
func (s *server) getConfig(m *message) error {
	if len(m.payload) < 12 {
		return fmt.Errorf("payload of %d bytes", len(m.payload))
	}
	cfg := s.dev.Config()
	off := uint64(binary.LittleEndian.Uint32(m.payload))
	size := uint64(binary.LittleEndian.Uint32(m.payload[4:]))
	if off+size > uint64(len(cfg)) {
		return m.reply(s.conn, nil) // "no such configuration"
	}
	return m.reply(s.conn, append(m.payload[:12:12], cfg[off:off+size]...))
}

// setMemTable takes {count u32, padding u32, count × {guest address u64, size
// u64, user address u64, offset in the file u64}}, with a file each. Running
// rings move over; chains that are out keep the old map.
func (s *server) setMemTable(m *message) error {
	if len(m.payload) < 8 {
		return fmt.Errorf("payload of %d bytes", len(m.payload))
	}
	n := int(binary.LittleEndian.Uint32(m.payload))
	if n > maxRegions || len(m.payload) < 8+32*n || len(m.fds) != n {
		return fmt.Errorf("%d regions in %d bytes with %d files", n, len(m.payload), len(m.fds))
	}
	var regions []region
	for i := range n {
		b := m.payload[8+32*i:]
		field := func(k int) uint64 { return binary.LittleEndian.Uint64(b[8*k:]) }
		r, err := mapRegion(m.fds[i], field(0), field(2), field(1), field(3))
		if err != nil {
			unmap(regions)
			return err
		}
		regions = append(regions, r)
	}
	old := s.mem
	s.mem = newMemory(regions)
	if old != nil {
		defer old.release()
	}
	for i := range s.rings {
		if q := s.rings[i].run; q != nil {
			if err := q.setMemory(s.mem); err != nil {
				return err
			}
		}
	}
	return nil
}

// fail ends the conversation for a failure of the device.
func (s *server) fail(err error) {
	s.failed.Lock()
	if s.devErr == nil {
		s.devErr = err
	}
	s.failed.Unlock()
	s.conn.Close()
}
