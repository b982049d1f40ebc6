// Command sampan-agent is PID 1 of Sampan's guest: it boots the guest, dials
// the host, and does what the host asks for until the machine is turned off.
// The machine's life is tied to the connection: without a host there is
// nobody to work for.
//
// The container runtime's stage 2 (sampan/guest/runtime) is a program of its
// own, beside it in the guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"

	"sampan/guest/agent"
	"sampan/guest/boot"
	"sampan/guest/forward"
	"sampan/guest/reclaim"
	"sampan/guest/runtime"
	"sampan/proto"
)

// build is the agent's version, set by the linker.
var build = "unknown"

// stage2 is where the guest bundle puts sampan-stage2.
const stage2 = "/sbin/sampan-stage2"

// The main goroutine keeps the process's first thread, which the kernel treats
// as the process itself: it is the parent of orphans, and must never end.
func init() { goruntime.LockOSThread() }

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sampan-agent: runs as PID 1 of a Sampan guest, nowhere else")
		os.Exit(2)
	}
	log := boot.NewLog()
	done := make(chan error, 1)
	go func() { done <- run(log) }()
	if err := <-done; err != nil {
		log.Error(err.Error())
	}
	log.Error("power off: " + fmt.Sprint(boot.PowerOff(log)))
	select {} // the kernel refused; if PID 1 ended, it would panic
}

// run boots and serves the host until it wants the machine turned off (nil),
// or is gone.
func run(log *slog.Logger) error {
	// The smallest heap, 6 MiB, does for some ten starts. A collection takes 15 ms
	// under emulation, which came to a fifth of a start with a third of that.
	debug.SetGCPercent(150)
	guest, err := boot.Run(log)
	if err != nil {
		return err
	}
	kids := &runtime.Children{Starter: guest.Home.Start}
	go func() {
		if err := kids.Run(context.Background()); err != nil {
			log.Error(err.Error())
		}
	}()
	rt, err := runtime.New(runtime.Options{
		Children: kids, Stage2: stage2, Cgroup: boot.CgroupDir, Mounts: []string{"/run", boot.DataDir},
	})
	if err != nil {
		return err
	}
	var settleIn time.Duration
	if guest.Home.Stays() { // to prepare a process takes as long as the new one takes to read itself in
		settleIn = 50 * time.Millisecond
	}
	streams := agent.NewStreams(log)
	svc := agent.New(agent.Config{
		Runtime: rt, Children: kids, Streams: streams, DialHost: dialHost,
		Stages: guest.Stages, Away: guest.Home.Away, Settle: guest.Home.Settle, SettleIn: settleIn, DataDisk: guest.DataDisk, Later: guest.Later, Build: build, Log: log,
	})
	// The host may open streams as soon as it has the control connection.
	ln, err := listenStreams(proto.PortStream)
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	go func() {
		if err := streams.Serve(ln); err != nil {
			log.Error(err.Error())
		}
	}()
	forwarded, err := listenVsock(proto.PortForward)
	if err != nil {
		return fmt.Errorf("listen for connections to forward: %w", err)
	}
	go forward.New(log).Run(context.Background(), forwarded) // ends with the machine
	go func() {
		r := reclaim.Reclaimer{
			Root: filepath.Dir(boot.CgroupDir), Containers: boot.CgroupDir,
			Compact: "/proc/sys/vm/compact_memory", Log: log,
		}
		if err := r.Run(context.Background()); err != nil {
			log.Error("memory is not given back to the host: " + err.Error())
		}
	}()
	go func() {
		if err := errors.Join(agent.EmptyTrash(), guest.TrimData()); err != nil {
			log.Warn(err.Error())
		}
	}()
	conn, err := vsock.Dial(vsock.Host, proto.PortControl, nil)
	if err != nil {
		return fmt.Errorf("connect to the host: %w", err)
	}
	guest.Reached(proto.StageConnected)
	return serve(svc, conn)
}

// serve answers the host's calls on conn until it asks for the power-off, or
// the connection ends.
func serve(svc *agent.Service, conn *vsock.Conn) error {
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	proto.RegisterAgentService(srv, svc)
	ln := newListener(conn)
	go srv.Serve(context.Background(), ln) // ends with the machine
	select {
	case <-svc.Off():
		return nil
	case <-ln.lost:
		svc.End(0)
		return errors.New("the connection to the host is lost")
	}
}
