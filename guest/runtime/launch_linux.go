package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// stage is a running stage 2 and the socket to it.
type stage struct {
	child *child
	conn  *net.UnixConn
}

// launch starts stage 2, which waits for its plan. mounts are what it lets go
// of, when it's in a mount namespace of its own.
func (r *Runtime) launch(attr *syscall.SysProcAttr, mounts ...string) (*stage, error) {
	conn, theirs, err := controlSocket()
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	defer theirs.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer null.Close()
	pidfd := -1
	attr.PidFD = &pidfd
	pid, err := r.opts.Children.Start(func() (int, error) {
		// Not os.StartProcess, which would first fork a probe of its own.
		pid, _, err := syscall.StartProcess(r.opts.Stage2, append([]string{stage2.Name}, mounts...), &syscall.ProcAttr{
			// Both so that it starts no thread at the wrong time (stage2's limitProcesses).
			Env:   []string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"},
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), null.Fd(), theirs.Fd()}, // stage2.ControlFD
			Sys:   attr,
		})
		return pid, err
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start stage 2: %w", err)
	}
	c, err := watch(r.opts.Children, pid, pidfd)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &stage{child: c, conn: conn}, nil
}

// give sends stage 2 its plan, with the streams and extra, the descriptors that
// the plan counts from 1.
func (s *stage) give(plan *stage2.Plan, stdio Stdio, extra []*os.File) error {
	sealed, err := sealedFile(plan.Encode())
	if err != nil {
		return fmt.Errorf("pass the plan on: %w", err)
	}
	defer sealed.Close()
	fds := []int{int(sealed.Fd())}
	for _, f := range stdio.files() {
		if f != nil && !plan.Process.Terminal {
			fds = append(fds, int(fdOf(f)))
		}
	}
	for _, f := range extra {
		fds = append(fds, int(f.Fd()))
	}
	m := stage2.Message{Kind: "plan"}
	for part := range slices.Chunk(fds, stage2.MaxDescriptors) {
		fds = fds[len(part):]
		m.More = len(fds)
		if _, _, err := s.conn.WriteMsgUnix(m.Encode(), unix.UnixRights(part...), nil); err != nil {
			return fmt.Errorf("pass the plan on: %w", err)
		}
		m.Kind = "descriptors"
	}
	return nil
}

// ended tells whether the process is gone.
func (s *stage) ended() bool {
	select {
	case <-s.child.done:
		return true
	default:
		return false
	}
}

// descriptors are files for stage 2.
type descriptors struct{ files []*os.File }

// add takes a file over, and returns its number in a plan.
func (d *descriptors) add(f *os.File) int {
	d.files = append(d.files, f)
	return len(d.files)
}

// tree adds a detached copy of what is mounted at path, or of the directory or
// file there, with what is mounted below.
func (d *descriptors) tree(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return 0, err
	}
	return d.add(os.NewFile(uintptr(fd), path)), nil
}

func (d *descriptors) close() {
	for _, f := range d.files {
		f.Close()
	}
}

// fdOf is f's descriptor. os.File.Fd would make it blocking, for the other
// users of a file that is shared as well.
func fdOf(f *os.File) uintptr {
	var fd uintptr
	conn, err := f.SyscallConn()
	if err == nil {
		err = conn.Control(func(n uintptr) { fd = n })
	}
	if err != nil {
		return f.Fd()
	}
	return fd
}

func (s Stdio) files() [3]*os.File { return [3]*os.File{s.Stdin, s.Stdout, s.Stderr} }

// null tells which streams are the container's /dev/null.
func (s Stdio) null() (null [3]bool) {
	for i, f := range s.files() {
		null[i] = f == nil
	}
	return null
}

// sealedFile is a file in memory that nobody can change any more.
func sealedFile(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "plan")
	_, err = f.Write(text)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// controlSocket is a pair of connected sockets that keep packets apart.
func controlSocket() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	f := os.NewFile(uintptr(fds[0]), "control")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// during makes the stage's socket fail when ctx is cancelled, until stop.
func (s *stage) during(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
}

func (s *stage) send(kind string) error { return s.tell(stage2.Message{Kind: kind}, nil) }

// tell sends a message, with a file unless it's nil.
func (s *stage) tell(m stage2.Message, f *os.File) error {
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	if _, _, err := s.conn.WriteMsgUnix(m.Encode(), rights, nil); err != nil {
		return fmt.Errorf("send %q to stage 2: %w", m.Kind, err)
	}
	return nil
}

// receive is stage 2's next message, with its descriptor or -1; io.EOF when
// there's none. An error that stage 2 reports is the result's.
func (s *stage) receive() (stage2.Message, int, error) {
	const maxMessage = 64 << 10
	var m stage2.Message
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
	if errors.Is(err, unix.ECONNRESET) {
		// Stage 2 has ended without reading all of ours. The kernel tells that
		// before it hands out what stage 2 had said.
		n, oobn, _, _, err = s.conn.ReadMsgUnix(buf, oob)
	}
	if err != nil || n == 0 {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return m, -1, err
	}
	fd := -1
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			fd = fds[0]
			unix.CloseOnExec(fd)
		}
	}
	if err := m.Decode(buf[:n]); err != nil {
		return m, fd, fmt.Errorf("message of stage 2: %w", err)
	}
	if m.Kind == "error" {
		return m, fd, stageError(m)
	}
	return m, fd, nil
}

// expect is receive for one kind of message.
func (s *stage) expect(kind string) (stage2.Message, int, error) {
	m, fd, err := s.receive()
	if err == io.EOF {
		<-s.child.done
		err = fmt.Errorf("stage 2 ended before it was %s, with code %d", kind, s.child.status.Code)
	}
	if err == nil && m.Kind != kind {
		err = fmt.Errorf("stage 2 says %q, not %q", m.Kind, kind)
	}
	return m, fd, err
}

// kill ends stage 2, and what it may have become, and waits for that.
func (s *stage) kill() {
	_ = s.child.signal(int(unix.SIGKILL)) // or it has ended already
	s.conn.Close()
	<-s.child.done
}

// reported is an error that stage 2 has told us, of a class.
type reported struct {
	text  string
	class error
}

func (e *reported) Error() string { return e.text }
func (e *reported) Unwrap() error { return e.class }

func stageError(m stage2.Message) error {
	switch m.Class {
	case stage2.ClassNotFound:
		return &reported{m.Err, ErrNotFound}
	case stage2.ClassNotExecutable:
		return &reported{m.Err, ErrNotExecutable}
	case stage2.ClassEnded:
		return &reported{m.Err, ErrNotRunning}
	}
	return &reported{m.Err, nil}
}
