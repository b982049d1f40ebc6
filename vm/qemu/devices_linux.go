package qemu

import (
	"fmt"
	"log/slog"
	"net"

	"sampan/vm"
	"sampan/vm/vhostuser"
)

// devices makes the backends for cfg.
func devices(cfg vm.Config, w *wiring, log *slog.Logger) (vsockDevice, []backend, error) {
	serve := func(dev vhostuser.Device) func(*net.UnixConn) error {
		return func(conn *net.UnixConn) error { return vhostuser.Serve(conn, dev, log) }
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
