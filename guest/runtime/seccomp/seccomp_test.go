package seccomp

import (
	"encoding/binary"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// simulate runs a program on a call, as the kernel does.
func simulate(t *testing.T, code []byte, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	var data [64]byte
	binary.LittleEndian.PutUint32(data[0:], nr)
	binary.LittleEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var acc uint32
	for pc := 0; ; pc++ {
		if pc >= len(code)/8 {
			t.Fatalf("ran off the program's end")
		}
		in := code[8*pc:]
		op, k := binary.LittleEndian.Uint16(in), binary.LittleEndian.Uint32(in[4:])
		var yes bool
		switch op {
		case ldAbs:
			acc = binary.LittleEndian.Uint32(data[k:])
			continue
		case and:
			acc &= k
			continue
		case retK:
			return k
		case ja:
			pc += int(k)
			continue
		case jeq:
			yes = acc == k
		case jgt:
			yes = acc > k
		case jge:
			yes = acc >= k
		default:
			t.Fatalf("instruction %#x", op)
		}
		if yes {
			pc += int(in[2])
		} else {
			pc += int(in[3])
		}
	}
}

const (
	amd64, i386, arm64, arm = 0xc000003e, 0x40000003, 0xc00000b7, 0x40000028
	eperm, enosys           = retErrno | 1, retErrno | 38
)

func dockerProfile(t *testing.T, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	s, err := profile.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDockerDefault checks calls of every architecture against Docker's list.
func TestDockerDefault(t *testing.T) {
	s := dockerProfile(t)
	s.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	code, _, err := Compile(s, specs.ArchX86_64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(code)/8)
	for _, tt := range []struct {
		name string
		arch uint32
		nr   uint32
		args []uint64
		want uint32
	}{
		{"read", amd64, 0, nil, retAllow},
		{"mount", amd64, 165, nil, eperm},
		{"reboot", amd64, 169, nil, eperm},
		{"clone of a thread", amd64, 56, []uint64{0x3d0f00}, retAllow},
		{"clone with new user namespace", amd64, 56, []uint64{0x10000011}, eperm},
		{"clone3", amd64, 435, nil, enosys},
		{"socket inet", amd64, 41, []uint64{2}, retAllow},
		{"socket vsock", amd64, 41, []uint64{40}, eperm},
		{"personality 0", amd64, 135, []uint64{0}, retAllow},
		{"personality query", amd64, 135, []uint64{0xffffffff}, retAllow},
		{"personality with high bits", amd64, 135, []uint64{1 << 32}, eperm},
		{"personality odd", amd64, 135, []uint64{0x40000}, eperm},
		{"newer than all", amd64, 900, nil, enosys},
		{"32-bit read", i386, 3, nil, retAllow},
		{"32-bit mount", i386, 21, nil, eperm},
		{"32-bit clone, new namespace", i386, 120, []uint64{0x00020000}, eperm},
		{"32-bit reboot", i386, 88, nil, eperm},
		{"x32 read", amd64, x32Bit | 0, nil, retAllow},
		{"x32 mount", amd64, x32Bit | 165, nil, eperm},
		{"another architecture", arm64, 63, nil, retKillThread},
	} {
		if got := simulate(t, code, tt.arch, tt.nr, tt.args...); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
	code, _, err = Compile(dockerProfile(t, "CAP_SYS_ADMIN"), specs.ArchX86_64)
	if err != nil {
		t.Fatal(err)
	}
	if got := simulate(t, code, amd64, 165); got != retAllow {
		t.Errorf("mount with CAP_SYS_ADMIN: %#x", got)
	}
}

func TestDockerDefaultARM(t *testing.T) {
	s := dockerProfile(t)
	s.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	code, _, err := Compile(s, specs.ArchAARCH64)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		arch, nr, want uint32
	}{
		{arm64, 63, retAllow}, {arm64, 40, eperm}, {arm, 3, retAllow}, {arm, 21, eperm}, {amd64, 0, retKillThread},
	} {
		if got := simulate(t, code, tt.arch, tt.nr); got != tt.want {
			t.Errorf("call %d of %#x: %#x, want %#x", tt.nr, tt.arch, got, tt.want)
		}
	}
}

// TestConditions checks each operator around its value, across 32 bits.
func TestConditions(t *testing.T) {
	const v = 5<<32 | 7
	values := []uint64{0, 7, 8, 5 << 32, v - 1, v, v + 1, 6 << 32, 6<<32 | 7, ^uint64(0)}
	for op, holds := range map[specs.LinuxSeccompOperator]func(uint64) bool{
		specs.OpEqualTo:      func(a uint64) bool { return a == v },
		specs.OpNotEqual:     func(a uint64) bool { return a != v },
		specs.OpLessThan:     func(a uint64) bool { return a < v },
		specs.OpLessEqual:    func(a uint64) bool { return a <= v },
		specs.OpGreaterThan:  func(a uint64) bool { return a > v },
		specs.OpGreaterEqual: func(a uint64) bool { return a >= v },
		specs.OpMaskedEqual:  func(a uint64) bool { return a&v == 7 },
	} {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"ioctl"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: v, ValueTwo: 7, Op: op}, {Index: 2, Value: 1, Op: specs.OpEqualTo}},
		}}}
		code, _, err := Compile(s, specs.ArchX86_64)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range values {
			want := uint32(retAllow)
			if holds(a) {
				want = eperm
			}
			if got := simulate(t, code, amd64, 16, 0, a, 1); got != want {
				t.Errorf("%s %#x: %#x, want %#x", op, a, got, want)
			}
			if got := simulate(t, code, amd64, 16, 0, a, 2); got != retAllow {
				t.Errorf("%s %#x with the other condition false: %#x", op, a, got)
			}
		}
	}
}

// TestMultiplexed: a denied socket call can't be made through socketcall.
func TestMultiplexed(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActErrno}}}
	code, _, err := Compile(s, specs.ArchX86_64)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		nr   uint32
		arg  uint64
		want uint32
	}{{359, 2, eperm}, {102, 1, eperm}, {102, 3, retAllow}} {
		if got := simulate(t, code, i386, tt.nr, tt.arg); got != tt.want {
			t.Errorf("call %d(%d): %#x, want %#x", tt.nr, tt.arg, got, tt.want)
		}
	}
}
