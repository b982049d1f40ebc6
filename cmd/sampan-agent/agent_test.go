package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sampan/kernel"
	"sampan/proto"
	"sampan/vm"
	"sampan/vm/qemu"
)

// guest is a machine with the bundle's agent, seen from the host.
type guest struct {
	proto.AgentService
	t       *testing.T
	machine vm.Machine
	console *console
	client  *ttrpc.Client
	info    *proto.ConfigureResponse
	uplink  *proto.Uplink // what Configure tells; optional
}

// console keeps what the guest prints.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

const bootTimeout = 60 * time.Second

// unpackInitrd is the path of the bundle's initramfs as it boots.
func unpackInitrd(t *testing.T, b *kernel.Bundle) string {
	t.Helper()
	path, ready, release, err := b.UnpackInitrd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	if err := ready(); err != nil {
		t.Fatal(err)
	}
	return path
}

// boot starts a machine from the guest bundle, meets its agent and configures
// it. The machine is stopped when the test ends.
func boot(t *testing.T, cfg vm.Config) *guest {
	t.Helper()
	dir, err := kernel.FindFrom(".")
	if err != nil {
		t.Fatal(err)
	}
	b, err := kernel.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, console: new(console)}
	cfg.Kernel, cfg.Initrd, cfg.Cmdline, cfg.CPUs, cfg.Console = b.Kernel, unpackInitrd(t, b), kernel.Cmdline, 2, g.console
	if cfg.Memory == 0 {
		cfg.Memory = 512 << 20
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	if g.machine, err = new(qemu.Driver).Boot(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.machine.Stop(context.Background())
		if t.Failed() {
			t.Logf("console:\n%s", g.console)
		}
	})
	ln, err := g.machine.Listen(proto.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	conn, err := ln.Accept()
	stop()
	ln.Close()
	if err != nil {
		t.Fatalf("no call from the agent: %v", err)
	}
	g.client = ttrpc.NewClient(conn)
	t.Cleanup(func() { g.client.Close() })
	g.AgentService = proto.NewAgentClient(g.client)
	return g
}

func (g *guest) configure() {
	g.t.Helper()
	var err error
	g.info, err = g.Configure(g.ctx(), &proto.ConfigureRequest{
		Version: proto.Version, TimeUnixNano: time.Now().UnixNano(), Hostname: "harbour", Uplink: g.uplink,
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// ctx bounds one call.
func (g *guest) ctx() context.Context {
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	g.t.Cleanup(cancel)
	return ctx
}

func (g *guest) stream(h proto.StreamHeader) net.Conn {
	g.t.Helper()
	port := uint32(proto.PortStream)
	if h.Kind == proto.StreamDial && h.Network == "tcp" {
		port = proto.PortForward
	}
	conn, err := g.machine.Dial(g.ctx(), port)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	if err := proto.WriteHeader(conn, h); err != nil {
		g.t.Fatal(err)
	}
	return conn
}

func (g *guest) stdio(container, exec, name string) net.Conn {
	g.t.Helper()
	return g.stream(proto.StreamHeader{Kind: proto.StreamStdio, Container: container, Exec: exec, Stream: name})
}

// shell runs a command in the guest itself and returns what it prints.
func (g *guest) shell(exec, command string) string {
	g.t.Helper()
	out := g.stdio("", exec, proto.Stdout)
	_, err := g.Exec(g.ctx(), &proto.ExecRequest{
		Exec:    exec,
		Process: encode(g.t, specs.Process{Args: []string{"/bin/sh", "-c", "exec 2>&1; " + command}, Env: []string{"PATH=/bin:/sbin"}, Cwd: "/"}),
		Streams: &proto.Streams{Stdout: true},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	b, err := io.ReadAll(out)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// powerOff asks for it and waits for the machine's end.
func (g *guest) powerOff() {
	g.t.Helper()
	g.PowerOff(g.ctx(), &proto.PowerOffRequest{GraceMs: 1000}) // answered by the end
	ended := make(chan error, 1)
	go func() { ended <- g.machine.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			g.t.Fatalf("the machine's end: %v", err)
		}
	case <-time.After(time.Minute):
		g.t.Fatal("the guest does not turn itself off")
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newDisk makes an empty data disk.
func newDisk(t *testing.T) vm.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4<<30); err != nil {
		t.Fatal(err)
	}
	return vm.Disk{Path: path, Serial: proto.DataDiskSerial}
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); err == nil || got != want {
		t.Errorf("error %v (%v), want %v", err, got, want)
	}
}

// TestMachine drives the guest's own side: boot, clock, shell, power-off, and
// what a pulled plug leaves.
func TestMachine(t *testing.T) {
	disk := newDisk(t)
	g := boot(t, vm.Config{Disks: []vm.Disk{disk}})

	_, err := g.Status(g.ctx(), &proto.Empty{})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = g.Configure(g.ctx(), &proto.ConfigureRequest{Version: proto.Version + 1})
	wantCode(t, err, codes.FailedPrecondition)
	g.configure()
	if g.info.DataDisk != "formatted" {
		t.Errorf("data disk %q, want formatted", g.info.DataDisk)
	}
	for _, st := range g.info.Stages {
		t.Logf("%-10s %s", st.Name, time.Duration(st.UptimeNano))
	}

	st, err := g.Status(g.ctx(), &proto.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("agent %d KiB; memory used %d MiB; disk %d MiB free", st.AgentRss>>10, (st.MemoryTotal-st.MemoryAvailable)>>20, st.DiskFree>>20)
	if st.AgentRss == 0 || st.AgentRss > 20<<20 {
		t.Errorf("the agent takes %d bytes, want at most 20 MiB", st.AgentRss)
	}

	if got := g.shell("name", "hostname"); got != "harbour\n" {
		t.Errorf("hostname %q", got)
	}
	if got := g.shell("root", "touch /x"); !strings.Contains(got, "Read-only file system") {
		t.Errorf("root is writable: %q", got)
	}
	// A child of PID 1 that nobody waits for must not stay a zombie.
	g.shell("orphan", "sh -c 'sleep 0.1 &'; sleep 0.5")
	if got := g.shell("zombies", "ps -o stat,comm | grep -c ^Z"); got != "0\n" {
		t.Errorf("zombies: %q", got)
	}
	g.testTTY()
	g.testStdin()

	g.shell("write", "echo kept > /data/file; touch /data/untrimmed; sync") // as if cut short
	g.powerOff()

	g = boot(t, vm.Config{Disks: []vm.Disk{disk}})
	g.configure()
	if got := g.shell("read", "cat /data/file"); g.info.DataDisk != "clean" || got != "kept\n" {
		t.Errorf("after a power-off: %q, file %q; want clean, kept", g.info.DataDisk, got)
	}
	g.wantTrimmed()
	g.shell("again", "echo more > /data/file2; sync")
	g.machine.Stop(t.Context()) // the plug

	g = boot(t, vm.Config{Disks: []vm.Disk{disk}})
	g.configure()
	if got := g.shell("read", "cat /data/file2"); g.info.DataDisk != "repaired" || got != "more\n" {
		t.Errorf("after a pulled plug: %q, file %q; want repaired, more", g.info.DataDisk, got)
	}
	g.wantTrimmed()
	// Without its host the guest ends by itself.
	g.client.Close()
	ended := make(chan error, 1)
	go func() { ended <- g.machine.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the guest goes on without its host")
	}
}

// wantTrimmed waits for the end of the trim that a boot was to do.
func (g *guest) wantTrimmed() {
	g.t.Helper()
	if got := g.shell("trimmed", "for i in $(seq 300); do [ -e /data/untrimmed ] || exit 0; sleep 0.1; done; echo not yet"); got != "" {
		g.t.Errorf("the data disk is trimmed: %s", got)
	}
}

func (g *guest) testTTY() {
	g.t.Helper()
	tty := g.stdio("", "tty", proto.TTY)
	_, err := g.Exec(g.ctx(), &proto.ExecRequest{
		Exec:    "tty",
		Process: encode(g.t, specs.Process{Args: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "PS1=> "}, Cwd: "/", Terminal: true}),
		Streams: &proto.Streams{Tty: true}, Size: &proto.TerminalSize{Rows: 11, Columns: 22},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := io.WriteString(tty, "stty size; tty; exit 5\n"); err != nil {
		g.t.Fatal(err)
	}
	out, err := io.ReadAll(tty)
	if err != nil || !strings.Contains(string(out), "11 22\r\n/dev/pts/0\r\n") {
		g.t.Errorf("terminal: %q, %v", out, err)
	}
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Exec: "tty"}); err != nil || w.ExitCode != 5 {
		g.t.Errorf("exit %v, %v; want 5", w, err)
	}
}

// testStdin sends bytes through a process and counts them on the other side.
func (g *guest) testStdin() {
	g.t.Helper()
	in, out := g.stdio("", "cat", proto.Stdin), g.stdio("", "cat", proto.Stdout)
	_, err := g.Exec(g.ctx(), &proto.ExecRequest{
		Exec: "cat", Process: encode(g.t, specs.Process{Args: []string{"/bin/cat"}, Cwd: "/"}),
		Streams: &proto.Streams{Stdin: true, Stdout: true},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	begin := time.Now()
	go func() {
		in.Write(data) // the comparison below tells
		in.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Equal(got, data) {
		g.t.Errorf("cat: %d bytes of %d, equal %v, %v", len(got), len(data), bytes.Equal(got, data), err)
	}
	g.t.Logf("%d MiB through stdin and stdout in %s", len(data)>>20, time.Since(begin))
	if _, err := g.Wait(g.ctx(), &proto.ProcessRequest{Exec: "cat"}); err != nil {
		g.t.Error(err)
	}
	// The host goes away: the process must not hang on a full pipe.
	out = g.stdio("", "seq", proto.Stdout)
	_, err = g.Exec(g.ctx(), &proto.ExecRequest{
		Exec: "seq", Process: encode(g.t, specs.Process{Args: []string{"/bin/seq", "200000"}, Cwd: "/"}),
		Streams: &proto.Streams{Stdout: true},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	out.Close()
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Exec: "seq"}); err != nil || w.ExitCode != 0 {
		g.t.Errorf("writer without a reader: %v, %v", w, err)
	}
}

// TestBootError: a stage that fails ends the machine, and the console says why.
func TestBootError(t *testing.T) {
	disk := newDisk(t)
	if err := os.WriteFile(disk.Path, bytes.Repeat([]byte("not yours"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := kernel.FindFrom(".")
	if err != nil {
		t.Fatal(err)
	}
	b, err := kernel.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := new(console)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	m, err := new(qemu.Driver).Boot(ctx, vm.Config{
		Kernel: b.Kernel, Initrd: unpackInitrd(t, b), CPUs: 1, Memory: 256 << 20, Console: out, Disks: []vm.Disk{disk},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop(context.Background())
	stop := context.AfterFunc(ctx, func() { m.Stop(context.Background()) })
	defer stop()
	err = m.Wait()
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	if want := "sampan-agent: disk: data disk: holds something that is not ext4"; err != nil || !strings.Contains(out.String(), want) {
		t.Errorf("ended with %v; console without %q:\n%s", err, want, out)
	}
}
