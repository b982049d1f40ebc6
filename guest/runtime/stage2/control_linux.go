package stage2

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// control is the socket to the agent.
type control struct{ fd int }

// send sends m, with a descriptor unless it's negative.
func (c control) send(m Message, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := unix.Sendmsg(c.fd, m.Encode(), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("tell the agent %q: %w", m.Kind, err)
	}
	return nil
}

// await waits for the agent's message of that kind.
func (c control) await(kind string) error {
	_, _, err := c.receive(kind)
	return err
}

// receive waits for a message, and returns the descriptors that come with it.
func (c control) receive(kind string) (m Message, fds []int, err error) {
	buf, oob := make([]byte, 512), make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	for {
		n, oobn, _, _, err := unix.Recvmsg(c.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return m, nil, fmt.Errorf("wait for %q: %w", kind, err)
		}
		if n == 0 {
			return m, nil, fmt.Errorf("wait for %q: the agent has given up", kind)
		}
		if err := m.Decode(buf[:n]); err != nil || m.Kind != kind {
			return m, nil, fmt.Errorf("wait for %q: got %q", kind, buf[:n])
		}
		if oobn == 0 {
			return m, nil, nil
		}
		rights, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(rights) != 1 {
			return m, nil, fmt.Errorf("descriptors of %q: %d messages, %v", kind, len(rights), err)
		}
		fds, err = unix.ParseUnixRights(&rights[0])
		return m, fds, err
	}
}

// plan receives the plan, and puts the streams in their places.
func (c control) plan() (Plan, error) {
	var plan Plan
	m, fds, err := c.receive("plan")
	if err != nil {
		return plan, err
	}
	for m.More > 0 {
		var more []int
		if m, more, err = c.receive("descriptors"); err != nil {
			return plan, err
		}
		fds = append(fds, more...)
	}
	if len(fds) == 0 {
		return plan, errors.New("plan without descriptors")
	}
	if plan, err = readPlan(fds[0]); err != nil {
		return plan, fmt.Errorf("read plan: %w", err)
	}
	fds = fds[1:]
	for stream, null := range plan.Process.Null {
		if null || plan.Process.Terminal {
			continue
		}
		if len(fds) == 0 {
			return plan, fmt.Errorf("plan without stream %d", stream)
		}
		if err := unix.Dup3(fds[0], stream, 0); err != nil {
			return plan, fmt.Errorf("set stream %d: %w", stream, err)
		}
		unix.Close(fds[0])
		fds = fds[1:]
	}
	return plan, plan.place(fds)
}

func readPlan(fd int) (Plan, error) {
	defer unix.Close(fd)
	var plan Plan
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return plan, err
	}
	text := make([]byte, st.Size)
	n, err := unix.Pread(fd, text, 0)
	if err != nil {
		return plan, err
	}
	return plan, plan.Decode(text[:n])
}

// place replaces the counts of descriptors by the descriptors.
func (p *Plan) place(fds []int) error {
	all := []*int{&p.PidFD, &p.CgroupFD, &p.Process.InitFD}
	for i := range p.Join {
		all = append(all, &p.Join[i].FD)
	}
	if p.Root != nil {
		all = append(all, &p.Root.FD)
		for i := range p.Root.Mounts {
			all = append(all, &p.Root.Mounts[i].FD)
		}
	}
	for _, fd := range all {
		switch {
		case *fd == 0:
		case *fd < 0 || *fd > len(fds):
			return fmt.Errorf("plan wants descriptor %d of %d", *fd, len(fds))
		default:
			*fd = fds[*fd-1]
		}
	}
	return nil
}
