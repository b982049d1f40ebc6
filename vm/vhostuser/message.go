package vhostuser

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// request is the type of a message (vhost-user.rst, "Front-end message types").
type request uint32

const (
	reqGetFeatures         request = 1
	reqSetFeatures         request = 2
	reqSetOwner            request = 3
	reqResetOwner          request = 4
	reqSetMemTable         request = 5
	reqSetVringNum         request = 8
	reqSetVringAddr        request = 9
	reqSetVringBase        request = 10
	reqGetVringBase        request = 11
	reqSetVringKick        request = 12
	reqSetVringCall        request = 13
	reqSetVringErr         request = 14
	reqGetProtocolFeatures request = 15
	reqSetProtocolFeatures request = 16
	reqGetQueueNum         request = 17
	reqSetVringEnable      request = 18
	reqGetConfig           request = 24
	reqSetConfig           request = 25
)

// Feature bits of virtio and of the protocol.
const (
	featureIndirect = 1 << 28
	featureEventIdx = 1 << 29
	featureProtocol = 1 << 30
	featureVersion1 = 1 << 32

	protocolMQ       = 1 << 0
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9
)

const (
	headerSize = 12
	maxPayload = 4096
	maxFDs     = 8

	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3

	noFD = 1 << 8 // in the payload of SET_VRING_KICK and its like
)

// message is {request u32, flags u32, size u32, payload}, with descriptors
// beside it.
type message struct {
	req     request
	flags   uint32
	payload []byte
	fds     []int // whoever uses one takes it out; the rest is closed
}

// readMessage returns io.EOF at the end of the conversation.
func readMessage(conn *net.UnixConn) (*message, error) {
	var header [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := conn.ReadMsgUnix(header[:], oob)
	if err != nil {
		return nil, err
	}
	m := &message{}
	if m.fds, err = parseFDs(oob[:oobn]); err != nil {
		return nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		m.close()
		return nil, fmt.Errorf("message with more than %d descriptors", maxFDs)
	}
	if _, err := io.ReadFull(conn, header[n:]); err != nil {
		m.close()
		return nil, fmt.Errorf("read header: %w", err)
	}
	m.req = request(binary.LittleEndian.Uint32(header[:]))
	m.flags = binary.LittleEndian.Uint32(header[4:])
	size := binary.LittleEndian.Uint32(header[8:])
	if m.flags&3 != flagVersion || size > maxPayload {
		m.close()
		return nil, fmt.Errorf("malformed header: request %d, flags %#x, %d bytes", m.req, m.flags, size)
	}
	m.payload = make([]byte, size)
	if _, err := io.ReadFull(conn, m.payload); err != nil {
		m.close()
		return nil, fmt.Errorf("read payload: %w", err)
	}
	return m, nil
}

func parseFDs(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials and the like
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// close closes the descriptors that nobody has taken.
func (m *message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// takeFD takes the only descriptor out of m; -1 when the payload says that
// there is none.
func (m *message) takeFD() (index int, fd int, err error) {
	v, err := m.uint64()
	if err != nil {
		return 0, -1, err
	}
	index = int(v & 0xff)
	if v&noFD != 0 {
		return index, -1, nil
	}
	if len(m.fds) != 1 {
		return 0, -1, fmt.Errorf("%d descriptors: want 1", len(m.fds))
	}
	fd, m.fds = m.fds[0], nil
	return index, fd, nil
}

func (m *message) uint64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, fmt.Errorf("payload of %d bytes: want 8", len(m.payload))
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// state is the payload {index u32, value u32}.
func (m *message) state() (index int, value uint32, err error) {
	v, err := m.uint64()
	return int(v & 0xffffffff), uint32(v >> 32), err
}

// reply sends the answer to m.
func (m *message) reply(conn *net.UnixConn, payload []byte) error {
	b := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(b, uint32(m.req))
	binary.LittleEndian.PutUint32(b[4:], flagVersion|flagReply)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	if _, err := conn.Write(append(b, payload...)); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	return nil
}

func (m *message) replyUint64(conn *net.UnixConn, v uint64) error {
	return m.reply(conn, binary.LittleEndian.AppendUint64(nil, v))
}
