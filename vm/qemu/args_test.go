package qemu

import (
	"cmp"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sampan/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestArgv compares whole command lines with testdata/NAME.argv, an argument
// with its value a line.
func TestArgv(t *testing.T) {
	small := vm.Config{Kernel: "/g/vmlinuz", Initrd: "/g/initrd", CPUs: 1, Memory: 256 << 20}
	full := vm.Config{
		Kernel: "/g/vmlinuz", Initrd: "/g/initrd", CPUs: 4, Memory: 3 << 30,
		Cmdline: `sampan.debug="a b" loglevel=7`,
		Disks: []vm.Disk{
			{Path: "/home/o'neil, \"jr\"/data.img", Serial: "data"},
			{Path: "/tools.img", Serial: "to,ols", ReadOnly: true},
		},
		Shares: []vm.Share{{Tag: "images", ReadOnly: true}, {Tag: "a,b"}},
		NIC:    &vm.NIC{MAC: net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}, File: os.Stdin},
	}
	w := wires{qmp: 3, console: 4, vsock: 5, shares: []int{6, 7}, net: 8}
	for _, tt := range []struct {
		name, arch string
		cfg        vm.Config
		acc        accelerator
	}{
		{"small-amd64-tcg", "amd64", small, tcg},
		{"small-amd64-kvm", "amd64", small, kvm},
		{"small-arm64-tcg", "arm64", small, tcg},
		{"small-arm64-kvm", "arm64", small, kvm},
		{"full-arm64-tcg", "arm64", full, tcg},
		{"full-amd64-tcg", "amd64", full, tcg},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := lines(argv(tt.cfg, boards()[tt.arch], tt.acc, 2.5e9, w))
			file := filepath.Join("testdata", tt.name+".argv")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("argv differs from %s (go test -update rewrites it); got:\n%s", file, got)
			}
		})
	}
}

// lines puts each option with its value on a line.
func lines(args []string) string {
	var b strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func TestChoose(t *testing.T) {
	intel := "processor\t: 0\nflags\t\t: fpu vmx sse\n"
	plain := "processor\t: 0\nflags\t\t: fpu sse hypervisor\nbugs\t\t: vmx\n"
	denied := &os.PathError{Op: "open", Path: "/dev/kvm", Err: os.ErrPermission}
	for _, tt := range []struct {
		want, guest string // guest: "" for the host's architecture
		f           facts
		say         string // choice.String(), or a part of the error after "!"
	}{
		{"", "", facts{"amd64", nil, intel}, "KVM"},
		{"auto", "", facts{"amd64", nil, strings.Replace(intel, "vmx", "svm", 1)}, "KVM"},
		{"auto", "", facts{"amd64", nil, plain}, "TCG (the CPU shows neither vmx nor svm)"},
		{"auto", "", facts{"amd64", denied, intel}, "TCG (KVM can't be used: open /dev/kvm: permission denied)"},
		{"auto", "", facts{"arm64", nil, ""}, "KVM"},
		{"tcg", "", facts{"amd64", nil, intel}, "TCG (as configured)"},
		{"kvm", "", facts{"amd64", nil, plain}, "KVM"},
		{"kvm", "", facts{"amd64", denied, intel}, "!not supported: open /dev/kvm"},
		{"", "arm64", facts{"amd64", nil, intel}, "TCG (KVM can't be used: an amd64 host can't run arm64 code)"},
		{"kvm", "arm64", facts{"amd64", nil, intel}, "!not supported: an amd64 host can't run arm64 code"},
		{"hvf", "", facts{"amd64", nil, intel}, "!want auto, kvm or tcg"},
	} {
		got, err := choose(tt.want, cmp.Or(tt.guest, tt.f.arch), tt.f)
		if part, isErr := strings.CutPrefix(tt.say, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("choose(%q, %v): error %v, want one with %q", tt.want, tt.f, err, part)
			}
			continue
		}
		if err != nil || got.String() != tt.say {
			t.Errorf("choose(%q, %v) = %v, %v; want %s", tt.want, tt.f, got, err, tt.say)
		}
		auto := tt.want != "kvm" && got.accelerator == kvm
		if got.fallback != auto {
			t.Errorf("choose(%q, %v): fallback %v, want %v", tt.want, tt.f, got.fallback, auto)
		}
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for range 100 {
		tl.Write([]byte("old line\r\n"))
	}
	tl.Write([]byte(strings.Repeat("x", 3*tailBytes)))
	tl.Write([]byte("\nhello \x1b[31mred\x1b[0m\xff\r\nlast\r\n\n"))
	got := tl.String()
	if !strings.HasSuffix(got, "x\nhello [31mred[0m?\nlast") || len(got) > tailBytes || strings.Contains(got, "old") {
		t.Errorf("tail is %d bytes, ends %q", len(got), got[max(0, len(got)-60):])
	}
	tl = tail{}
	for range 100 {
		tl.Write([]byte("line\n"))
	}
	if n := strings.Count(tl.String(), "\n") + 1; n != tailLines {
		t.Errorf("%d lines kept, want %d", n, tailLines)
	}
}
