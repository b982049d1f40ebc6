package qemu

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"sampan/vm"
)

// wiring is every socket pair between us and QEMU, before QEMU runs.
type wiring struct {
	wires                // the numbers in QEMU
	files     []*os.File // QEMU's ends, in the order of their numbers
	qmpConn   *net.UnixConn
	consConn  *net.UnixConn
	vsockConn *net.UnixConn
	fsConns   []*net.UnixConn // one per share
}

// newWiring makes the pairs for cfg.
func newWiring(cfg vm.Config) (*wiring, error) {
	w := &wiring{}
	fail := func(err error) (*wiring, error) {
		w.closeTheirs(cfg)
		w.closeOurs()
		return nil, err
	}
	var err error
	if w.qmpConn, w.qmp, err = w.pair(); err != nil {
		return fail(err)
	}
	if w.consConn, w.console, err = w.pair(); err != nil {
		return fail(err)
	}
	if w.vsockConn, w.vsock, err = w.pair(); err != nil {
		return fail(err)
	}
	for range cfg.Shares {
		conn, fd, err := w.pair()
		if err != nil {
			return fail(err)
		}
		w.fsConns, w.shares = append(w.fsConns, conn), append(w.shares, fd)
	}
	if cfg.NIC != nil {
		w.net = firstFD + len(w.files)
		w.files = append(w.files, cfg.NIC.File)
	}
	return w, nil
}

// pair makes one pair. Both ends are closed on exec of anything but QEMU.
func (w *wiring) pair() (ours *net.UnixConn, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("make socket pair: %w", err)
	}
	our, their := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer our.Close() // FileConn duplicates it
	conn, err := net.FileConn(our)
	if err != nil {
		their.Close()
		return nil, 0, fmt.Errorf("make socket pair: %w", err)
	}
	w.files = append(w.files, their)
	return conn.(*net.UnixConn), firstFD + len(w.files) - 1, nil
}

// closeTheirs closes QEMU's ends, once QEMU has inherited them. The network
// card's is its owner's.
func (w *wiring) closeTheirs(cfg vm.Config) {
	for _, f := range w.files {
		if cfg.NIC == nil || f != cfg.NIC.File {
			f.Close()
		}
	}
	w.files = nil
}

// closeOurs closes our ends where nobody serves them yet.
func (w *wiring) closeOurs() {
	for _, c := range append([]*net.UnixConn{w.qmpConn, w.consConn, w.vsockConn}, w.fsConns...) {
		if c != nil {
			c.Close()
		}
	}
}
