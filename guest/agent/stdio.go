package agent

import (
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/runtime"
	"sampan/proto"
)

const (
	// pipeSize lets a process write on while the copy waits for the host.
	pipeSize = 256 << 10
	// lingerTimeout is how long a finished stream waits for the host to close
	// it, so that nothing that is under way is lost.
	lingerTimeout = 30 * time.Second
)

// stdio is a process's standard streams, from both sides.
type stdio struct {
	child runtime.Stdio       // the process's ends
	ours  map[string]*os.File // the other ends, non-blocking, by stream
	stdin []io.Closer         // both ends of the copy to the process
}

// streamNames lists the streams that the host opens.
func streamNames(s *proto.Streams) []string {
	if s.GetTty() {
		return []string{proto.TTY}
	}
	var names []string
	for _, n := range []struct {
		on   bool
		name string
	}{{s.GetStdin(), proto.Stdin}, {s.GetStdout(), proto.Stdout}, {s.GetStderr(), proto.Stderr}} {
		if n.on {
			names = append(names, n.name)
		}
	}
	return names
}

// newStdio makes the pipes of a process. Without any of its own, a stream is
// /dev/null.
func newStdio(s *proto.Streams, size *proto.TerminalSize) (*stdio, error) {
	st := &stdio{ours: map[string]*os.File{}}
	st.child.Rows, st.child.Columns = uint16(size.GetRows()), uint16(size.GetColumns())
	for _, n := range streamNames(s) {
		if n == proto.TTY {
			continue
		}
		r, w, err := pipe(n == proto.Stdin)
		if err != nil {
			st.closeChild()
			st.closeOurs()
			return nil, err
		}
		switch n {
		case proto.Stdin:
			st.child.Stdin, st.ours[n] = r, w
		case proto.Stdout:
			st.child.Stdout, st.ours[n] = w, r
		case proto.Stderr:
			st.child.Stderr, st.ours[n] = w, r
		}
	}
	return st, nil
}

// pipe makes a pipe whose one end is the agent's, and non-blocking (the writing
// one for stdin); the process's end blocks, as programs expect.
func pipe(oursWrites bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// A wish: without it the pipe has its usual size.
	unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeSize)
	ours := p[0]
	if oursWrites {
		ours = p[1]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// terminal takes the master of the process's terminal.
func (s *stdio) terminal(master *os.File) error {
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	s.ours[proto.TTY] = os.NewFile(uintptr(fd), "tty")
	return nil
}

// closeChild closes the process's ends.
func (s *stdio) closeChild() {
	for _, f := range []*os.File{s.child.Stdin, s.child.Stdout, s.child.Stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// closeOurs closes the agent's ends, when there is nothing to connect.
func (s *stdio) closeOurs() {
	for _, f := range s.ours {
		f.Close()
	}
}

// connect copies between the process and the host, in goroutines that end with
// the streams: the output's when the process and its heirs have closed it, the
// input's with closeStdin.
func (s *stdio) connect(conns map[string]net.Conn) {
	for n, f := range s.ours {
		conn := conns[n]
		switch n {
		case proto.Stdin:
			s.stdin = []io.Closer{conn, f}
			go pumpIn(f, conn)
		case proto.TTY:
			go copyAll(f, conn.(syscallConn)) // ends when pumpOut closes both
			go pumpOut(conn, f)
		default:
			go pumpOut(conn, f)
		}
	}
}

// pumpIn copies what the host sends to the process, and its end. When the
// process has closed its side, the host's next write fails.
func pumpIn(f *os.File, conn net.Conn) {
	copyAll(f, conn.(syscallConn))
	f.Close()
	conn.Close()
}

// pumpOut copies what the process writes to the host. A terminal reads EIO
// when the last process has closed it.
func pumpOut(conn net.Conn, f *os.File) {
	copyOrDrain(conn, f)
	f.Close()
	if cw, ok := conn.(closeWriter); ok {
		cw.CloseWrite()
		// The host closes when it has read everything.
		conn.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.Copy(io.Discard, conn)
	}
	conn.Close()
}

// closeStdin ends the copy to a process that has ended, even when the host
// sends on.
func (s *stdio) closeStdin() {
	for _, c := range s.stdin {
		c.Close()
	}
}
