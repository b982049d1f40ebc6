package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sampan/vm/vmtest/guest"
)

// netArg is the value of peer.net on the kernel's command line; the zero Prefix
// without one.
func netArg(cmdline string) (netip.Prefix, error) {
	text, err := os.ReadFile(cmdline)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, arg := range strings.Fields(string(text)) {
		if v, ok := strings.CutPrefix(arg, "peer.net="); ok {
			return netip.ParsePrefix(v)
		}
	}
	return netip.Prefix{}, nil
}

// cardUp gives a network card its address.
func cardUp(name string, addr netip.Prefix) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	ip, mask := addr.Addr().As4(), net.CIDRMask(addr.Bits(), 32)
	for _, step := range []struct {
		request uint
		set     func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := step.set(r); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, step.request, r); err != nil {
			return fmt.Errorf("network card %s: ioctl %#x: %w", name, step.request, err)
		}
	}
	return nil
}

// serveTCP serves the suite's commands on TCP ports of the same numbers until
// the machine ends, and returns once it listens.
func serveTCP() error {
	listening, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		failed <- guest.Serve(context.Background(), guest.Env{
			Listen: func(port uint32) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) },
			Dial: func(uint32) (net.Conn, error) {
				close(listening)
				c, _ := net.Pipe()
				return c, nil
			},
		})
	}()
	select {
	case <-listening:
		return nil
	case err := <-failed:
		return fmt.Errorf("serve TCP: %w", err)
	}
}
