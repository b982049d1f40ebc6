package stage2

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// terminal is a new pseudo-terminal of the container's devpts.
type terminal struct{ master, slave int }

// openTerminal makes the process's terminal; nil when it has none.
func openTerminal(p *Process) (*terminal, error) {
	if !p.Terminal {
		return nil, nil
	}
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/pts/ptmx: %w", err)
	}
	t := &terminal{master: master}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(master, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, errors.New("the container's /dev/pts is not a devpts")
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	// Asked of the master, not opened by its name, which might show anything.
	slave, err := peer(master, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	t.slave = slave
	if p.Rows != 0 || p.Columns != 0 {
		size := unix.Winsize{Row: p.Rows, Col: p.Columns}
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &size); err != nil {
			return nil, fmt.Errorf("set terminal's size: %w", err)
		}
	}
	return t, nil
}

// bindConsole shows the terminal as /dev/console.
func (t *terminal) bindConsole() error {
	fd, err := unix.OpenTree(t.slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open /dev/console: %w", err)
	}
	defer unix.Close(fd)
	target, err := makeTarget("/dev/console", false)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := unix.MoveMount(fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /dev/console: %w", err)
	}
	return nil
}

// masterFD is the master's descriptor, or -1 without a terminal.
func (t *terminal) masterFD() int {
	if t == nil {
		return -1
	}
	return t.master
}

// closeMaster closes the master, once the agent has it: else the terminal
// wouldn't hang up when the agent closes it.
func (t *terminal) closeMaster() {
	if t != nil {
		unix.Close(t.master)
	}
}

// peer opens the other end of a terminal.
func peer(master, flags int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, uintptr(flags))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
