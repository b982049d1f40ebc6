package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"sampan/vm"
	"sampan/vm/vmtest"
	"sampan/vm/vmtest/guest"
)

// bundleEnv names a folder with the guest ready-made, for a user who can't
// build it.
const bundleEnv = "VMTEST_GUEST"

// testConfig is a machine with the suite's guest, and the driver for its
// architecture. TCG is the slow accelerator, which exists everywhere.
func testConfig(t testing.TB) (*Driver, vm.Config) {
	d := &Driver{Accel: "tcg"}
	var kernel, initrd string
	if dir := os.Getenv(bundleEnv); dir != "" {
		kernel, initrd = filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	} else {
		kernel, initrd, d.Arch = vmtest.Guest(t)
	}
	return d, vm.Config{
		Kernel: kernel, Initrd: initrd, CPUs: 2,
		// From 2.75 GiB on the guest's memory has a hole, and our devices see
		// two pieces of it. None of it is touched before it is used.
		Memory:  3 << 30,
		Console: t.Output(),
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func boot(t testing.TB, d *Driver, cfg vm.Config) *machine {
	t.Helper()
	begin := time.Now()
	m, err := d.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("booted %s (%s) in %s", m.(*machine).Describe(), cmp.Or(d.Arch, runtime.GOARCH), time.Since(begin).Round(time.Millisecond))
	return m.(*machine)
}

// TestInitrdComesLate: the guest does not run before its initramfs is there.
func TestInitrdComesLate(t *testing.T) {
	d, cfg := testConfig(t)
	content, err := os.ReadFile(cfg.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(cfg.Initrd, make([]byte, len(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Ready = func() error {
		f, err := os.OpenFile(cfg.Initrd, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		return errors.Join(err, f.Close())
	}
	m := boot(t, d, cfg)
	defer m.Stop(context.Background())
	listenReady(t, m)()
}

func TestConformance(t *testing.T) {
	d, cfg := testConfig(t)
	vmtest.Run(t, func(t *testing.T) vm.Machine {
		cfg.Console = t.Output()
		return boot(t, d, cfg)
	})
}

// TestConformanceAsUser runs a part of the suite again as a user that is made
// for it, with this test binary. Started by an ordinary user there is nothing
// to add: TestConformance was that.
func TestConformanceAsUser(t *testing.T) {
	if os.Getuid() != 0 {
		return
	}
	name := fmt.Sprintf("vmtest%d", os.Getpid())
	if out, err := exec.Command("useradd", "--system", "--no-create-home", name).CombinedOutput(); err != nil {
		t.Fatalf("make a user: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("userdel", name).CombinedOutput(); err != nil {
			t.Errorf("remove the user: %v: %s", err, out)
		}
	})
	dir, err := os.MkdirTemp("", "vmtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	kernel, initrd, _ := vmtest.Guest(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for dst, src := range map[string]string{"kernel": kernel, "initrd": initrd, "test": self} {
		if out, err := exec.Command("install", "-m", "755", src, filepath.Join(dir, dst)).CombinedOutput(); err != nil {
			t.Fatalf("install: %v: %s", err, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), "runuser", "-u", name, "--", filepath.Join(dir, "test"),
		"-test.v", "-test.run", "^TestConformance$/^(connections|end)$/^(echo|big_to_host|stop|crash)$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", bundleEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as %s: %v\n%s", name, err, out)
	}
	for _, want := range []string{"connections/echo", "end/crash"} {
		if !strings.Contains(string(out), "--- PASS: TestConformance/"+want) {
			t.Errorf("as %s: %s did not run:\n%s", name, want, out)
		}
	}
}

// BenchmarkBoot is a boot with nothing in the guest, up to the guest's call.
func BenchmarkBoot(b *testing.B) {
	d, cfg := testConfig(b)
	for b.Loop() {
		m := boot(b, d, cfg)
		l, err := m.Listen(guest.ReadyPort)
		if err != nil {
			b.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
		if err := m.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
