package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"sampan/vm"
)

// script makes an executable that plays QEMU.
func script(t *testing.T, body string) string {
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/bash\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// speak answers the monitor (descriptor 3) as QEMU of a version does, up to
// the end of negotiation.
func speak(version string) string {
	return `echo '{"QMP": {"version": {"qemu": ` + version + `}}}' >&3; read -r line <&3; echo '{"return": {}, "id": 1}' >&3; `
}

const (
	new7 = `{"major": 7, "minor": 2, "micro": 0}`
	old6 = `{"major": 6, "minor": 0, "micro": 1}`
)

// TestBootFails: whatever a QEMU does, Boot says what in time, and leaves
// neither process, goroutine nor descriptor.
func TestBootFails(t *testing.T) {
	for _, tt := range []struct {
		name, body  string
		stage, want string
		tail        string
	}{
		{"option refused", "echo 'qemu: -sandbox: no such thing' >&2; exit 1", "process", "exit status 1: qemu: -sandbox: no such thing", ""},
		{"too old for our options", `[ "$1" = --version ] && { echo 'QEMU emulator version 6.2.0 (Debian)'; exit; }; exit 1`, "process", "is QEMU 6.2.0; 7.2 or newer is needed: apt install", ""},
		{"too old by its greeting", speak(old6) + "exec sleep 60", "process", "is QEMU 6.0.1; 7.2 or newer is needed", ""},
		{"silent", "exec sleep 60", "process", "no sign of life in 300ms", ""},
		{"not QMP", "echo hello >&3; exec sleep 60", "process", "parse QMP", ""},
		{"silent console", speak(new7) + "exec sleep 60", "kernel", "console stayed silent for 300ms", ""},
		{"killed", speak(new7) + "kill -9 $$", "kernel", "signal: killed", ""},
		{"reset at once", speak(new7) + `echo '{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}' >&3`, "kernel", "guest-reset", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaks := watchLeaks(t)
			var stages []string
			d := &Driver{Binary: script(t, tt.body), Accel: "tcg", processLimit: 300 * time.Millisecond, kernelLimit: 300 * time.Millisecond}
			_, err := d.Boot(t.Context(), vm.Config{
				Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20,
				Stage: func(s string) { stages = append(stages, s) },
			})
			var be *vm.BootError
			if !errors.As(err, &be) || be.Stage != tt.stage || !strings.Contains(err.Error(), tt.want) || be.After == 0 {
				t.Errorf("error %v, want stage %s and %q", err, tt.stage, tt.want)
			}
			if got, want := strings.Join(stages, " "), map[string]string{"process": "", "kernel": "process"}[tt.stage]; got != want {
				t.Errorf("stages %q, want %q", got, want)
			}
			leaks()
		})
	}
}

// TestBootRetries: what fails under KVM is tried again without, and the stages
// are told once.
func TestBootRetries(t *testing.T) {
	body := `[ "$1" = --version ] && exit 1; for a; do [ "$a" = host ] && { echo no kvm >&2; ` + speak(new7) + ` exit 1; }; done; ` + speak(new7) + `echo booting >&4; exec sleep 60`
	d := &Driver{Binary: script(t, body), processLimit: 10 * time.Second, kernelLimit: 10 * time.Second}
	cfg := vm.Config{Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20}
	var stages []string
	cfg.Stage = once(func(s string) { stages = append(stages, s) })
	b := boards()[runtime.GOARCH]
	m, err := d.bootTwice(t.Context(), cfg, d.Binary, b, choice{accelerator: kvm, fallback: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := "QEMU 7.2.0, TCG (a boot under KVM failed)"; m.Describe() != want {
		t.Errorf("described as %q, want %q", m.Describe(), want)
	}
	if got := strings.Join(stages, " "); got != "process kernel" {
		t.Errorf("stages %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := d.bootTwice(t.Context(), cfg, d.Binary, b, choice{accelerator: kvm}); err == nil {
		t.Error("KVM as configured fell back to TCG")
	}
}

// TestBootNotReady: files that are no good end a boot, with every accelerator.
func TestBootNotReady(t *testing.T) {
	leaks := watchLeaks(t)
	body := `for a; do [ "$a" = -S ] && waits=1; done; [ "$waits" ] || exit 1; ` + speak(new7) + `read -r line <&3; echo "got $line" >&4; exec sleep 60`
	d := &Driver{Binary: script(t, body), processLimit: 10 * time.Second, kernelLimit: 10 * time.Second}
	boom := errors.New("boom")
	asked := 0
	var console strings.Builder
	_, err := d.bootTwice(t.Context(), vm.Config{
		Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20, Console: &console, Stage: func(string) {},
		Ready: func() error { asked++; return boom },
	}, d.Binary, boards()[runtime.GOARCH], choice{accelerator: kvm, fallback: true})
	if !errors.Is(err, boom) || asked != 1 {
		t.Errorf("error %v, want %v; asked %d times", err, boom, asked)
	}
	if console.Len() > 0 {
		t.Errorf("QEMU %s", console.String())
	}
	leaks()
}

// TestBootReady: the guest runs when the files are ready, not before.
func TestBootReady(t *testing.T) {
	body := speak(new7) + `read -r line <&3; [[ $line == *'"cont"'* ]] || exit 1; echo '{"return": {}, "id": 2}' >&3; echo booting >&4; exec sleep 60`
	d := &Driver{Binary: script(t, body), Accel: "tcg", processLimit: 10 * time.Second, kernelLimit: 10 * time.Second}
	asked := false
	m, err := d.Boot(t.Context(), vm.Config{
		Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20,
		Ready: func() error { asked = true; return nil },
	})
	if err != nil || !asked {
		t.Fatalf("asked %v, %v", asked, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestBootCancelled(t *testing.T) {
	leaks := watchLeaks(t)
	boom := errors.New("boom")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(boom) })
	d := &Driver{Binary: script(t, speak(new7)+"exec sleep 60"), Accel: "tcg"}
	_, err := d.Boot(ctx, vm.Config{Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20})
	if !errors.Is(err, boom) {
		t.Errorf("error %v, want the cause %v", err, boom)
	}
	leaks()
}

func TestNoQEMU(t *testing.T) {
	d := &Driver{Binary: "/nowhere/qemu"}
	_, err := d.Boot(t.Context(), vm.Config{Kernel: "/none", Initrd: "/none", CPUs: 1, Memory: 64 << 20})
	if err == nil || !strings.Contains(err.Error(), "no /nowhere/qemu in PATH): apt install qemu-system") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

// watchLeaks notes goroutines and descriptors; the result fails the test if
// there are more later.
func watchLeaks(t *testing.T) (check func()) {
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	count() // the poller's own descriptors appear with the first use
	goroutines, fds := count()
	return func() {
		t.Helper()
		var g, f int
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if g, f = count(); g <= goroutines && f <= fds {
				return
			}
		}
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d descriptors; before: %d, %d\n%s", g, f, goroutines, fds, buf[:runtime.Stack(buf, true)])
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                  "10.0.2",
		"QEMU emulator version 7":                                       "",
		"":                                                              "",
	} {
		v, err := parseVersion(text)
		if (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("parseVersion(%q) = %v, %v; want %q", text, v, err, want)
		}
	}
}
