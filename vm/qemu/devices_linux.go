package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"sampan/vm"
	"sampan/vm/vhostuser"
)

// devices makes the backends for cfg. Its stage "devices" is reached when QEMU
// has spoken to each of them.
func devices(cfg vm.Config, w *wiring, log *slog.Logger) (vsockDevice, []backend, error) {
	var silent atomic.Int64 // back ends that QEMU has not spoken to
	silent.Store(1 + int64(len(cfg.Shares)))
	serve := func(dev vhostuser.Device) func(*net.UnixConn) error {
		return func(conn *net.UnixConn) error {
			if spokenTo(conn) && silent.Add(-1) == 0 {
				cfg.Stage("devices")
			}
			return vhostuser.Serve(conn, dev, log)
		}
	}
	vsock := vhostuser.NewVsock(guestCID)
	backends := []backend{{"vsock", w.vsockConn, serve(vsock)}}
	for i, s := range cfg.Shares {
		if s.Server == nil {
			return nil, nil, fmt.Errorf("share %q without a file server: %w", s.Tag, vm.ErrUnsupported)
		}
		fs := vhostuser.NewFS(s.Server, requestQueues(cfg.CPUs))
		backends = append(backends, backend{"share " + s.Tag, w.fsConns[i], serve(fs)})
	}
	return vsock, backends, nil
}

// spokenTo waits until there is something to read, which stays unread, and
// says whether it is more than conn's end.
func spokenTo(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		var err error
		n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	return err == nil && n > 0
}
