package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sampan/vm"
	"sampan/vm/vmtest/guest"
	"sampan/vm/vmtest/speed"
)

// listenReady returns a function that waits for the guest's next call, which
// it makes with each of its boots.
func listenReady(t testing.TB, m *machine) (wait func()) {
	t.Helper()
	l, err := m.Listen(guest.ReadyPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return func() {
		t.Helper()
		timer := time.AfterFunc(90*time.Second, func() { l.Close() })
		defer timer.Stop()
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("no call of the guest: %v", err)
		}
		c.Close()
	}
}

// open opens a connection for a command of the suite's guest.
func open(t testing.TB, m *machine, command string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := m.Dial(ctx, guest.CommandPort)
	if err == nil {
		_, err = fmt.Fprintln(c, command)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ping fails unless c, a connection for "echo", does so.
func ping(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Error(err)
	}
	got := make([]byte, len(text))
	_, err := io.WriteString(c, text)
	if err == nil {
		_, err = io.ReadFull(c, got)
	}
	if err != nil || string(got) != text {
		t.Errorf("echo of %q: %q, %v", text, got, err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Error(err)
	}
}

// TestPauseAndReset pauses, and then resets, a guest while a hundred streams
// are open. They survive the one, and all fail at the other, when the guest's
// driver comes up again; a new one can be opened, and nothing is left of them.
//
// In the product a guest never resets (-no-reboot): the machine ends instead,
// which the conformance suite looks at. The device has to stand it all the
// same: a driver may start anew.
func TestPauseAndReset(t *testing.T) {
	d, cfg := testConfig(t)
	if d.Arch != "" && d.Arch != runtime.GOARCH {
		t.Skip("needs no second architecture")
	}
	d.Binary = script(t, "exec "+boards()[runtime.GOARCH].binary+` "$@" -action reboot=reset`)
	m := boot(t, d, cfg)
	defer m.Stop(context.Background())
	ready := listenReady(t, m)
	ready()
	leaks := watchLeaks(t)

	const streams = 100
	var conns []net.Conn
	for i := range streams {
		c := open(t, m, "echo")
		ping(t, c, fmt.Sprint(i))
		conns = append(conns, c)
	}
	execute := func(command string) {
		t.Helper()
		if _, err := m.mon.execute(t.Context(), command); err != nil {
			t.Fatal(err)
		}
	}
	execute("stop")
	execute("cont")
	for i, c := range conns {
		ping(t, c, fmt.Sprint("after the pause ", i))
	}

	type failure struct {
		err error
		at  time.Time
	}
	failed := make(chan failure, streams)
	for _, c := range conns {
		go func() {
			_, err := c.Read(make([]byte, 1))
			failed <- failure{err, time.Now()}
		}()
	}
	begin := time.Now()
	execute("system_reset") // the button: the guest gets to do nothing
	ready()
	back := time.Now()
	first, last := back, begin
	for range streams {
		select {
		case f := <-failed:
			if !errors.Is(f.err, syscall.ECONNRESET) {
				t.Errorf("a stream's error: %v", f.err)
			}
			if f.at.Before(first) {
				first = f.at
			}
			if f.at.After(last) {
				last = f.at
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a stream outlives the guest's reset")
		}
	}
	t.Logf("after the reset: streams failed within %s, the guest was back after %s", last.Sub(first), back.Sub(begin))
	if last.Sub(first) > 2*time.Second {
		t.Errorf("from the first stream's failure to the last: %s", last.Sub(first))
	}
	for _, c := range conns {
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write after the reset: %v", err)
		}
		c.Close()
	}
	c := open(t, m, "echo")
	ping(t, c, "anew")
	c.Close()
	leaks()
}

// TestDeviceLost: the machine ends when a device of ours fails, since QEMU
// can't attach to another, and calls then fail at once.
func TestDeviceLost(t *testing.T) {
	leaks := watchLeaks(t)
	d := &Driver{Binary: script(t, speak(new7)+"echo booting >&4; echo 'no word of vhost-user' >&5; exec sleep 60"), Accel: "tcg"}
	m, err := d.Boot(t.Context(), vm.Config{Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Dial(t.Context(), 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	if err := m.Wait(); !errors.Is(err, errLost) || !strings.Contains(err.Error(), "device vsock ended: vhost-user: malformed header") {
		t.Errorf("wait: %v", err)
	}
	leaks()
}

// BenchmarkVsock measures the vsock device, with vm/vmtest/guest at the other
// end, and QEMU's user-mode networking in the same machine.
func BenchmarkVsock(b *testing.B) {
	for _, cpus := range []int{1, 2} {
		b.Run(fmt.Sprint("cpus=", cpus), func(b *testing.B) { benchmarkVsock(b, cpus) })
	}
}

func benchmarkVsock(b *testing.B, cpus int) {
	d, cfg := testConfig(b)
	cfg.CPUs = cpus
	tcp := userNet(b, d, &cfg)
	m := boot(b, d, cfg)
	defer m.Stop(context.Background())
	listenReady(b, m)()
	for _, p := range []struct {
		name string
		speed.Peer
	}{{"vsock", speed.Peer{Dial: m.Dial}}, {"user", speed.Peer{Dial: tcp}}} {
		for _, bb := range []struct {
			name, unit string
			f          func(context.Context) (float64, error)
		}{
			{"to guest", "MiB/s", func(ctx context.Context) (float64, error) { return p.ToGuest(ctx, 128<<20) }},
			{"to host", "MiB/s", func(ctx context.Context) (float64, error) { return p.ToHost(ctx, 128<<20) }},
			{"round trip", "ms", func(ctx context.Context) (float64, error) { return p.RoundTrip(ctx, 1000) }},
			// More at once than QEMU's backlog are reset.
			{"connections", "1/s", func(ctx context.Context) (float64, error) { return p.Connections(ctx, 1000, 4) }},
		} {
			b.Run(p.name+"/"+bb.name, func(b *testing.B) {
				var sum float64
				begin := cpuTime(b, m.Pid())
				for b.Loop() {
					v, err := bb.f(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					sum += v
				}
				b.ReportMetric(sum/float64(b.N), bb.unit)
				b.ReportMetric((cpuTime(b, m.Pid())-begin).Seconds()/float64(b.N), "QEMU-s/op")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// userNet adds a card behind QEMU's user-mode networking, and returns how to
// dial the guest through it.
func userNet(b *testing.B, d *Driver, cfg *vm.Config) func(context.Context, uint32) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	d.Extra = append(d.Extra, "-netdev", fmt.Sprintf("user,id=user,ipv6=off,net=10.0.2.0/24,dhcpstart=10.0.2.15,hostfwd=tcp:%s-10.0.2.15:%d", addr, guest.CommandPort),
		"-device", "virtio-net-pci,netdev=user,romfile=")
	cfg.Cmdline += " peer.net=10.0.2.15/24"
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
}

// cpuTime is what a process has used of the processors: on a busy machine it
// says more than what the clock does.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte(") "))
	fields := strings.Fields(string(text)) // from the third on (proc_pid_stat(5))
	var sum time.Duration
	for _, i := range []int{14, 15} { // utime, stime, in ticks of 10 ms
		n, err := strconv.Atoi(fields[i-3])
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}
