package vmtest

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"sampan/vm"
	"sampan/vm/vmtest/guest"
)

func endTests() map[string]func(*testing.T, vm.Machine) {
	return map[string]func(*testing.T, vm.Machine){
		"power-off": func(t *testing.T, m vm.Machine) {
			if err := ending(t, m, func() { command(t, m, "poweroff") }); err != nil {
				t.Errorf("wait after a power-off: %v", err)
			}
		},
		"stop": func(t *testing.T, m vm.Machine) {
			err := ending(t, m, func() {
				stop(t, m)
				streams(4, func(int) { stop(t, m) })
			})
			if err != nil {
				t.Errorf("wait after Stop: %v", err)
			}
		},
		"reset": func(t *testing.T, m vm.Machine) {
			// Whether a machine that resets itself counts as failed is the
			// driver's to say.
			_ = ending(t, m, func() { command(t, m, "reset") })
		},
		"crash": func(t *testing.T, m vm.Machine) {
			if err := ending(t, m, func() { crash(t, m) }); err == nil {
				t.Error("wait after a crash: nil")
			}
		},
	}
}

// crash kills the hypervisor, if there is one.
func crash(t *testing.T, m vm.Machine) {
	p, ok := m.(vm.Processer)
	if !ok {
		command(t, m, "crash")
		return
	}
	if err := syscall.Kill(p.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// ending ends the machine with many connections open, and checks that nothing
// hangs: neither readers, nor a listener, nor later calls. It returns Wait's
// result.
func ending(t *testing.T, m vm.Machine, end func()) error {
	t.Helper()
	const open = 100
	var conns []net.Conn
	for range open {
		conns = append(conns, command(t, m, "hold"))
	}
	l, err := m.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	begin := time.Now()
	end()
	result := within(t, callLimit, "wait", func() (error, error) { return m.Wait(), nil })
	t.Logf("ended in %s: %v", time.Since(begin).Round(time.Millisecond), result)

	streams(open, func(i int) {
		err := readFailure(conns[i], promptLimit)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("connection %d outlives the machine", i)
		}
		if err := conns[i].SetWriteDeadline(time.Now().Add(promptLimit)); err != nil {
			return
		}
		if _, err := conns[i].Write([]byte("x")); err == nil {
			t.Errorf("connection %d takes data after the machine's end", i)
		}
	})
	if err := within(t, promptLimit, "accept", func() (error, error) { return <-accepted, nil }); err == nil {
		t.Error("accept after the machine's end succeeded")
	}
	checkEnded(t, m)
	return result
}

// checkEnded calls everything on a machine that has ended.
func checkEnded(t *testing.T, m vm.Machine) {
	t.Helper()
	begin := time.Now()
	if c, err := m.Dial(context.Background(), guest.CommandPort); err == nil {
		c.Close()
		t.Error("dial after the machine's end succeeded")
	}
	if l, err := m.Listen(0); err == nil {
		l.Close()
		t.Error("listen after the machine's end succeeded")
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("failing after the machine's end took %s", d)
	}
	stop(t, m)
	first, second := m.Wait(), m.Wait()
	if first != second {
		t.Errorf("wait says %v, then %v", first, second)
	}
}
