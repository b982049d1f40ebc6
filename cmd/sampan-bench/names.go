package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"sampan/vm/vmtest/guest"
	"sampan/vm/vmtest/image"
)

// questions of one measurement.
const questions = 300

// nameRows measure the name server of a network of one's own, asked by one
// process: for a name of the network, which the agent knows, and for one that the
// daemon on the host is asked for. The limits are datagrams that go as far.
func (b *bench) nameRows() []row {
	var host string // echoes, for containers
	start := func(ctx context.Context) error {
		if host != "" {
			return nil
		}
		if err := image.Build(filepath.Join(b.share, "asker"), "sampan/cmd/sampan-bench/echo", b.bundle.Manifest.Arch); err != nil {
			return err
		}
		if err := b.do(ctx, "network", "create", "names"); err != nil {
			return err
		}
		if err := b.do(ctx, "run", "-d", "--name", "asker", "--network", "names", "-v", b.share+":/share:ro", "busybox", "/share/asker"); err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		go func() { // ends with the process
			for buf := make([]byte, 1<<16); ; {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(buf[:n], from)
			}
		}()
		host = fmt.Sprintf("host.docker.internal:%d", pc.LocalAddr().(*net.UDPAddr).Port)
		return nil
	}
	ask := func(name string, server func() string) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			if err := start(ctx); err != nil {
				return 0, err
			}
			out, err := b.output(ctx, "exec", "asker", "/share/asker", "ask", name, server(), strconv.Itoa(questions))
			if err != nil {
				return 0, err
			}
			return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		}
	}
	own := func() string { return "" }
	return []row{
		{"a name of the container's network, asked by one process", "a datagram to another process of the container, and back", "the agent's wake-up, in Go, and the rule that leads to it", "ms",
			ask("asker", own), ask("asker", func() string { return fmt.Sprintf("127.0.0.1:%d", guest.CommandPort) })},
		{"a name outside, asked by one process", "a datagram to a process of the host, and back", "the agent between the container and the daemon's stack", "ms",
			ask("host.docker.internal", own), ask("host.docker.internal", func() string { return host })},
	}
}
