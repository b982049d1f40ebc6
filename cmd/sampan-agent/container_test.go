package main_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"sampan/host/network"
	"sampan/proto"
	"sampan/vm"
)

// containerSpec is a small container that runs args.
func containerSpec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE", "CAP_KILL"}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: args, Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root:     &specs.Root{Path: "ignored"},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
		}},
	}
}

func (g *guest) start(id string, spec *specs.Spec, edit func(*proto.StartRequest)) (stdout, stderr io.Reader, err error) {
	g.t.Helper()
	out, errs := g.stdio(id, "", proto.Stdout), g.stdio(id, "", proto.Stderr)
	req := &proto.StartRequest{
		Id: id, Spec: encode(g.t, spec), Layers: []string{"base", "top"},
		Streams: &proto.Streams{Stdout: true, Stderr: true},
	}
	if edit != nil {
		edit(req)
	}
	_, err = g.Start(g.ctx(), req)
	return out, errs, err
}

// finish reads a container's streams to their end, waits for it and removes it.
func (g *guest) finish(id string, stdout, stderr io.Reader) (out, errs string, code int32) {
	g.t.Helper()
	o, err := io.ReadAll(stdout)
	if err != nil {
		g.t.Fatal(err)
	}
	e, err := io.ReadAll(stderr)
	if err != nil {
		g.t.Fatal(err)
	}
	w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: id})
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.Remove(g.ctx(), &proto.RemoveRequest{Id: id, Purge: true}); err != nil {
		g.t.Fatal(err)
	}
	return string(o), string(e), w.ExitCode
}

// TestContainer runs containers from EROFS layers in a real machine.
func TestContainer(t *testing.T) {
	host, err := network.New(network.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	nic, uplink, detach, err := host.Attach()
	if err != nil {
		t.Fatal(err)
	}
	defer detach()
	defer nic.File.Close()
	disk := newDisk(t)
	g := boot(t, vm.Config{Disks: []vm.Disk{disk}, NIC: nic})
	g.uplink = uplink
	g.configure()
	if got := g.shell("dns", "cat /etc/resolv.conf"); got != "nameserver "+uplink.Dns[0]+"\n" {
		t.Errorf("name servers: %q", got)
	}
	// Without shares the two directories are plain ones, which will do; EROFS
	// reads no file of a tmpfs, though.
	g.shell("images", "mkdir /data/images && mount -o bind /data/images /run/sampan/images")
	g.put("/run/sampan/images/base", busybox(t))
	g.put("/run/sampan/images/top", layer(t, map[string]string{
		"etc/top": "top\n", "vol/sub/file": "in the image\n", "noexec/x": "x", "evil": "→/../../../data", "not-executable": "#!",
	}))
	g.shell("host", "mkdir -p /run/sampan/host/exp/sub; echo from the host > /run/sampan/host/exp/sub/f; ln -s /data /run/sampan/host/exp/link")

	t.Run("mounts", func(t *testing.T) { g.testMounts(t) })
	t.Run("errors", func(t *testing.T) { g.testErrors(t) })
	t.Run("service", func(t *testing.T) { g.testService(t) })
	t.Run("outbound", func(t *testing.T) { g.testOutbound(t) })
	t.Run("terminal", func(t *testing.T) { g.testTerminal(t) })
	t.Run("many", func(t *testing.T) { g.testMany(t) })
	// All is taken down, soon after it was removed: only layers stay mounted, and
	// a process in reserve has a cgroup; it holds no mounts of others.
	left := "ls /run/sampan/containers /data/containers; ls -d /sys/fs/cgroup/sampan/*/ | wc -l; cat /proc/[0-9]*/mountinfo | grep -c containers; ls /run/sampan/layers"
	want := "/data/containers:\n\n/run/sampan/containers:\n1\n0\nbase\ntop\n"
	got := g.shell("left", left)
	for i, end := 0, time.Now().Add(20*time.Second); got != want && time.Now().Before(end); i++ {
		got = g.shell(fmt.Sprint("left", i), left)
	}
	if got != want {
		t.Errorf("left behind: %q, want %q", got, want)
	}
	// One that ignores SIGTERM (PID 1 without a handler) must not keep the disk.
	if _, _, err := g.start("stubborn", containerSpec("/bin/sleep", "1000"), nil); err != nil {
		t.Fatal(err)
	}
	g.powerOff()
	checkClean(t, disk.Path)
}

// checkClean reads the superblock of an ext4 file system: the state at 0x3a
// must be 1 (valid, no errors), and the journal empty (bit 4 of 0x60).
func checkClean(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		t.Fatal(err)
	}
	if sb[0x3a] != 1 || sb[0x60]&4 != 0 {
		t.Errorf("the data disk was not unmounted: state %d, features %#x", sb[0x3a], sb[0x60])
	}
}

// testTerminal runs a container on a terminal, and resizes it.
func (g *guest) testTerminal(t *testing.T) {
	spec := containerSpec("/bin/sh")
	spec.Process.Terminal = true
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"},
	})
	tty := g.stdio("tty", "", proto.TTY)
	_, err := g.Start(g.ctx(), &proto.StartRequest{
		Id: "tty", Spec: encode(t, spec), Layers: []string{"base", "top"},
		Streams: &proto.Streams{Tty: true}, Size: &proto.TerminalSize{Rows: 11, Columns: 22},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tty, "stty size; echo first\n"); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	for b := make([]byte, 256); !bytes.Contains(seen, []byte("\nfirst\r\n")); {
		n, err := tty.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
		seen = append(seen, b[:n]...)
	}
	if !bytes.Contains(seen, []byte("11 22\r\n")) {
		t.Errorf("initial size: %q", seen)
	}
	if _, err := g.Resize(g.ctx(), &proto.ResizeRequest{Container: "tty", Size: &proto.TerminalSize{Rows: 33, Columns: 44}}); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(tty, "stty size; exit 4\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(tty)
	if err != nil || !bytes.Contains(rest, []byte("33 44\r\n")) {
		t.Errorf("after the resize: %q, %v", rest, err)
	}
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: "tty"}); err != nil || w.ExitCode != 4 {
		t.Errorf("exit: %v, %v; want 4", w, err)
	}
	if _, err := g.Remove(g.ctx(), &proto.RemoveRequest{Id: "tty", Purge: true}); err != nil {
		t.Error(err)
	}
}

func (g *guest) testMounts(t *testing.T) {
	spec := containerSpec("/bin/sh", "-c", `cat /etc/top /etc/hosts /host/f /vol/sub/file; stat -c %u:%g:%a /vol/sub/file
		echo new > /vol/sub/new; echo > /ro/x; echo layer > /etc/top; echo oops >&2; exit 3`)
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Type: "host", Source: "exp/sub", Destination: "/host", Options: []string{"rw"}},
		specs.Mount{Type: "host", Source: "exp", Destination: "/ro", Options: []string{"ro"}},
		specs.Mount{Type: "volume", Source: "vol", Destination: "/vol", Options: []string{"rw"}},
	)
	files := func(req *proto.StartRequest) { req.Files = map[string][]byte{"/etc/hosts": []byte("from sampan\n")} }
	stdout, stderr, err := g.start("one", spec, files)
	if err != nil {
		t.Fatal(err)
	}
	out, errs, code := g.finish("one", stdout, stderr)
	if want := "top\nfrom sampan\nfrom the host\nin the image\n1000:1001:755\n"; out != want || code != 3 {
		t.Errorf("printed %q, exit %d; want %q, 3", out, code, want)
	}
	if !strings.Contains(errs, "Read-only file system") || !strings.HasSuffix(errs, "oops\n") {
		t.Errorf("standard error: %q", errs)
	}

	// The volume keeps what was written; the layer does not, it was purged.
	spec.Process.Args[2] = "cat /vol/sub/new /vol/sub/file /etc/top"
	stdout, stderr, err = g.start("two", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, errs, _ := g.finish("two", stdout, stderr); out != "new\nin the image\ntop\n" {
		t.Errorf("second container: %q, %q", out, errs)
	}
	if _, err := g.RemoveVolume(g.ctx(), &proto.VolumeRequest{Name: "vol"}); err != nil {
		t.Error(err)
	}
	if got := g.shell("vol", "ls /data/volumes"); got != "" {
		t.Errorf("removed volume: %q", got)
	}
}

func (g *guest) testErrors(t *testing.T) {
	missing := containerSpec("/bin/true")
	missing.Mounts = append(missing.Mounts, specs.Mount{Type: "host", Source: "exp/link", Destination: "/x"})
	outside := containerSpec("/bin/true")
	outside.Mounts = append(outside.Mounts, specs.Mount{Type: "host", Source: "../containers", Destination: "/x"})
	for _, tc := range []struct {
		name string
		spec *specs.Spec
		edit func(*proto.StartRequest)
		want codes.Code
	}{
		{"no executable", containerSpec("/bin/nothing"), nil, codes.NotFound},
		{"no permission", containerSpec("/etc"), nil, codes.PermissionDenied},
		{"symbolic link in a share", missing, nil, codes.FailedPrecondition},
		{"out of a share", outside, nil, codes.FailedPrecondition},
		{"no layer", containerSpec("/bin/true"), func(r *proto.StartRequest) { r.Layers = []string{"missing"} }, codes.FailedPrecondition},
		{"bad layer", containerSpec("/bin/true"), func(r *proto.StartRequest) { r.Layers = []string{"../x"} }, codes.InvalidArgument},
		{"no spec", containerSpec("/bin/true"), func(r *proto.StartRequest) { r.Spec = []byte("{") }, codes.InvalidArgument},
	} {
		_, _, err := g.start("bad", tc.spec, tc.edit)
		t.Logf("%s: %v", tc.name, err)
		wantCode(t, err, tc.want)
	}
	begin := time.Now()
	_, err := g.Start(g.ctx(), &proto.StartRequest{
		Id: "bad", Spec: encode(t, containerSpec("/bin/true")), Layers: []string{"base"}, Streams: &proto.Streams{Stdin: true},
	})
	if d := time.Since(begin); err == nil || d < 9*time.Second || d > 15*time.Second {
		t.Errorf("no streams: %v after %s", err, d)
	}
	if _, err := g.Remove(g.ctx(), &proto.RemoveRequest{Id: "bad", Purge: true}); err != nil {
		t.Error(err)
	}
	_, err = g.Wait(g.ctx(), &proto.ProcessRequest{Container: "bad"})
	wantCode(t, err, codes.NotFound)
}

func (g *guest) testService(t *testing.T) {
	endpoint := &proto.Endpoint{Network: &proto.Network{Id: "net0", Bridge: "sb0", Gateways: []string{"172.30.0.1/24"}}, Addresses: []string{"172.30.0.2/24"}, Mac: "02:42:ac:1e:00:02", Name: "eth0"}
	stdout, stderr, err := g.start("web", containerSpec("/bin/httpd", "-f", "-p", "80", "-h", "/www"), func(r *proto.StartRequest) {
		r.Endpoints = []*proto.Endpoint{endpoint}
		r.Init = true
	})
	if err != nil {
		t.Fatal(err)
	}
	var page []byte
	for deadline := time.Now().Add(10 * time.Second); len(page) == 0 && time.Now().Before(deadline); { // until it listens
		conn := g.stream(proto.StreamHeader{Kind: proto.StreamDial, Network: "tcp", Address: "172.30.0.2:80"})
		io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		page, _ = io.ReadAll(conn)
	}
	if len(page) == 0 || page[0] != proto.DialOK || !bytes.HasSuffix(page, []byte("hello from a container\n")) {
		t.Errorf("page: %q", page)
	}

	out := g.stdio("web", "x1", proto.Stdout)
	_, err = g.Exec(g.ctx(), &proto.ExecRequest{
		Container: "web", Exec: "x1", Streams: &proto.Streams{Stdout: true},
		Process: encode(t, specs.Process{Args: []string{"sh", "-c", "id -u; ip -4 -o addr show eth0; ip route; exit 7"}, Env: []string{"PATH=/bin"}, Cwd: "/", User: specs.User{UID: 1000}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(out)
	if !strings.HasPrefix(string(got), "1000\n") || !strings.Contains(string(got), "172.30.0.2/24") || !strings.Contains(string(got), "default via 172.30.0.1") {
		t.Errorf("exec: %q", got)
	}
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: "web", Exec: "x1"}); err != nil || w.ExitCode != 7 {
		t.Errorf("exec: %v, %v", w, err)
	}
	_, err = g.Exec(g.ctx(), &proto.ExecRequest{Container: "web", Exec: "x2", Process: encode(t, specs.Process{Args: []string{"/nothing"}, Cwd: "/"})})
	wantCode(t, err, codes.NotFound)
	_, err = g.Remove(g.ctx(), &proto.RemoveRequest{Id: "web"})
	wantCode(t, err, codes.FailedPrecondition)

	if _, err := g.Signal(g.ctx(), &proto.SignalRequest{Container: "web", Signal: uint32(unix.SIGTERM)}); err != nil {
		t.Error(err)
	}
	if _, _, code := g.finish("web", stdout, stderr); code != 143 {
		t.Errorf("exit %d, want 143", code)
	}
	_, err = g.Signal(g.ctx(), &proto.SignalRequest{Container: "web", Signal: uint32(unix.SIGTERM)})
	wantCode(t, err, codes.NotFound)
}

// testOutbound fetches a page of this process from within a container, through
// bridge, NAT and uplink; and nothing from a container of another network.
func (g *guest) testOutbound(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello from the host\n") }))
	defer web.Close()
	_, port, err := net.SplitHostPort(web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	join := func(net, host string) func(*proto.StartRequest) {
		return func(r *proto.StartRequest) {
			r.Endpoints = []*proto.Endpoint{{
				Network: &proto.Network{Id: "net" + net, Bridge: "sb" + net, Gateways: []string{"172.30." + net + ".1/24"}}, Addresses: []string{"172.30." + net + "." + host + "/24"},
				Mac: "02:42:ac:1e:0" + net + ":0" + host, Name: "eth0",
			}}
		}
	}
	if _, _, err := g.start("peer", containerSpec("/bin/httpd", "-f", "-p", "80", "-h", "/www"), join("1", "2")); err != nil {
		t.Fatal(err)
	}
	// From its own network, as soon as it listens; then from another one.
	// (wget's own option for a timeout crashes Debian 12's busybox.)
	near := "for i in 1 2 3 4 5 6 7 8 9; do timeout 3 wget -q -O - http://172.30.1.2 && break; sleep 0.2; done; "
	for _, tc := range []struct{ net, command, want string }{
		{"1", near, "hello from a container\n"},
		{"2", "timeout 5 wget -q -O - http://192.168.127.254:" + port, "hello from the host\n"},
		{"2", "timeout 2 wget -q -O - http://172.30.1.2 || echo unreachable", "unreachable\n"},
	} {
		stdout, stderr, err := g.start("client", containerSpec("/bin/sh", "-c", tc.command), join(tc.net, "3"))
		if err != nil {
			t.Fatal(err)
		}
		if out, errs, code := g.finish("client", stdout, stderr); out != tc.want || code != 0 {
			t.Errorf("%s: %q, %q, exit %d; want %q", tc.command, out, errs, code, tc.want)
		}
	}
	if _, err := g.Signal(g.ctx(), &proto.SignalRequest{Container: "peer", Signal: uint32(unix.SIGKILL), All: true}); err != nil {
		t.Error(err)
	}
	if w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: "peer"}); err != nil || w.ExitCode != 137 {
		t.Errorf("killed: %v, %v; want 137", w, err)
	}
	if _, err := g.Remove(g.ctx(), &proto.RemoveRequest{Id: "peer", Purge: true}); err != nil {
		t.Error(err)
	}
}

// testMany starts containers one by one, and many at once.
func (g *guest) testMany(t *testing.T) {
	run := func(id string) error {
		spec := containerSpec("/bin/true")
		_, err := g.Start(g.ctx(), &proto.StartRequest{Id: id, Spec: encode(t, spec), Layers: []string{"base", "top"}})
		if err != nil {
			return err
		}
		w, err := g.Wait(g.ctx(), &proto.ProcessRequest{Container: id})
		if err != nil {
			return err
		}
		if w.ExitCode != 0 {
			return fmt.Errorf("exit %d", w.ExitCode)
		}
		_, err = g.Remove(g.ctx(), &proto.RemoveRequest{Id: id, Purge: true})
		return err
	}
	for i := range 5 {
		begin := time.Now()
		if err := run(fmt.Sprint("seq", i)); err != nil {
			t.Error(err)
		}
		t.Logf("true: %s", time.Since(begin))
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := run(fmt.Sprint("par", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("20 at once: %s", time.Since(begin))
}
