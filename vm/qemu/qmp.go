package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A monitor speaks QMP, QEMU's control protocol: JSON objects, one a line.
//
//	QEMU: {"QMP": {"version": …}}             greeting
//	  we: {"execute": "qmp_capabilities"}     leaves negotiation
//	QEMU: {"return": {}, "id": 1}             one per command
//	QEMU: {"event": "SHUTDOWN", "data": …}    at any time
type monitor struct {
	conn   net.Conn
	events func(event) // called by the reading goroutine
	done   chan struct{}

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan message
	err     error // why reading ended
}

// maxLine bounds what one line of QMP may make us hold.
const maxLine = 1 << 20

var errMonitorClosed = errors.New("monitor closed")

// message is any object that QEMU sends.
type message struct {
	QMP *struct {
		Version struct {
			QEMU version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *commandError   `json:"error"`
	ID     uint64          `json:"id"`
	event
}

// event is what QEMU tells unasked.
type event struct {
	Name string `json:"event"`
	Data struct {
		Reason string `json:"reason"` // SHUTDOWN, BLOCK_IO_ERROR
		Guest  bool   `json:"guest"`  // SHUTDOWN, RESET
		Node   string `json:"node-name"`
		Action string `json:"action"`
	} `json:"data"`
}

// commandError is QEMU's answer to a command that failed.
type commandError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *commandError) Error() string { return e.Desc }

// version of QEMU.
type version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// tooOld: 7.2 is the first with "-netdev dgram".
func (v version) tooOld() bool { return v.Major < 7 || v.Major == 7 && v.Minor < 2 }

// parseMessage reads one line.
func parseMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("parse QMP: %w", err)
	}
	return m, nil
}

// newMonitor waits for the greeting, negotiates, and then serves until conn
// ends; close ends it. events is called for every event.
func newMonitor(ctx context.Context, conn net.Conn, events func(event)) (*monitor, version, error) {
	m := &monitor{conn: conn, events: events, done: make(chan struct{}), pending: map[uint64]chan message{}}
	greeting := make(chan version, 1)
	go m.read(greeting)
	select {
	case v := <-greeting:
		if _, err := m.execute(ctx, "qmp_capabilities"); err != nil {
			m.close()
			return nil, version{}, err
		}
		return m, v, nil
	case <-m.done:
		return nil, version{}, m.err
	case <-ctx.Done():
		m.close()
		return nil, version{}, context.Cause(ctx)
	}
}

// read serves the connection until it ends.
func (m *monitor) read(greeting chan<- version) {
	err := m.readLines(greeting)
	m.mu.Lock()
	m.err = err
	m.pending = nil
	m.mu.Unlock()
	m.conn.Close()
	close(m.done)
}

func (m *monitor) readLines(greeting chan<- version) error {
	sc := bufio.NewScanner(m.conn)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		msg, err := parseMessage(sc.Bytes())
		switch {
		case err != nil:
			return err
		case msg.QMP != nil:
			select {
			case greeting <- msg.QMP.Version.QEMU:
			default: // a second greeting means nothing to us
			}
		case msg.Name != "":
			m.events(msg.event)
		default:
			m.answer(msg)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("read QMP: %w", err)
	}
	return fmt.Errorf("read QMP: %w", io.EOF)
}

// answer hands msg to whoever waits for it.
func (m *monitor) answer(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ch := m.pending[msg.ID]; ch != nil {
		delete(m.pending, msg.ID)
		ch <- msg
	}
}

// execute runs a command without arguments. Cancelling ctx stops waiting for
// the answer, not the command.
func (m *monitor) execute(ctx context.Context, command string) (json.RawMessage, error) {
	ch := make(chan message, 1)
	m.mu.Lock()
	if m.pending == nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("QMP %s: %w", command, errMonitorClosed)
	}
	m.nextID++
	id := m.nextID
	m.pending[id] = ch
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pending, id)
		m.mu.Unlock()
	}()

	line, err := json.Marshal(map[string]any{"execute": command, "id": id})
	if err != nil {
		return nil, fmt.Errorf("QMP %s: %w", command, err)
	}
	deadline, _ := ctx.Deadline() // none: that of an earlier command goes
	m.conn.SetWriteDeadline(deadline)
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case msg := <-ch:
		if msg.Error != nil {
			return nil, fmt.Errorf("QMP %s: %w", command, msg.Error)
		}
		return msg.Return, nil
	case <-m.done:
		return nil, fmt.Errorf("QMP %s: %w", command, errMonitorClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	}
}

// close ends the connection and waits for the reading goroutine.
func (m *monitor) close() {
	m.conn.Close()
	<-m.done
}
