package runtime

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deviceCache keeps loaded device programs by their code: most containers have
// the same one. The zero deviceCache is empty.
type deviceCache struct {
	mu       sync.Mutex
	programs map[string]*os.File
}

// defaultDeviceRules are always allowed: what every container's /dev has, making nodes (they're of no
// use without access), and terminals. The spec's rules come before these, as
// runc puts its own list after the user's.
var defaultDeviceRules = []specs.LinuxDeviceCgroup{
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	deviceRule(1, 3), deviceRule(1, 5), deviceRule(1, 7), deviceRule(1, 8), deviceRule(1, 9),
	deviceRule(5, 0), deviceRule(5, 2),
	{Allow: true, Type: "c", Major: ptr[int64](136), Access: "rwm"},
}

func deviceRule(major, minor int64) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
}

func ptr[T any](v T) *T { return &v }

// attach makes the kernel ask the rules' program about every device that a
// process of the cgroup opens or makes.
func (d *deviceCache) attach(cgroup string, rules []specs.LinuxDeviceCgroup) error {
	all := append(append([]specs.LinuxDeviceCgroup{}, rules...), defaultDeviceRules...)
	code, err := deviceProgram(all)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	prog := d.programs[string(code)]
	if prog == nil {
		if prog, err = loadDeviceProgram(code); err != nil {
			return fmt.Errorf("load device program: %w", err)
		}
		if d.programs == nil {
			d.programs = map[string]*os.File{}
		}
		d.programs[string(code)] = prog
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	attr := struct{ target, program, kind, flags uint32 }{
		uint32(dir.Fd()), uint32(prog.Fd()), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI,
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device program: %w", err)
	}
	return nil
}

// HoldDevices has the kernel patch itself for device programs for as long as
// cgroup is there, which it else does with each first one.
func HoldDevices(cgroup string) error { return new(deviceCache).attach(cgroup, nil) }

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func loadDeviceProgram(code []byte) (*os.File, error) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count          uint32
		code, license        uint64
		logLevel, logSize    uint32
		log                  uint64
		kernelVersion, flags uint32
		name                 [16]byte
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	var fd int
	err := withoutSignals(func() (err error) {
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		return err
	})
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "device program"), nil
}

// withoutSignals calls f on a thread that takes no signals. The verifier gives
// up with EAGAIN when one is pending (bpf_check in the kernel's verifier.c), and
// Go's scheduler sends SIGURG to whoever computes for more than 10 ms, which in
// emulation the verifier does: trying again could fail for ever.
func withoutSignals(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	err := f()
	if restore := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); restore != nil {
		panic("restore the thread's signal mask: " + restore.Error())
	}
	return err
}

// deviceProgram is the eBPF code of a list of rules: the last one that matches
// decides, and without any the answer is no (as with cgroup v1's list).
//
// The program's argument is struct bpf_cgroup_dev_ctx: access<<16 | type, major,
// minor (r2 to r5 below). Each rule is a run of tests that skip to the next.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]byte, error) {
	var p ebpf
	p.load(2, 0) // r2 = type
	p.op(0x54, 2, 0, 0, 0xffff)
	p.load(3, 0) // r3 = access
	p.op(0x74, 3, 0, 0, 16)
	p.load(4, 4) // r4 = major
	p.load(5, 8) // r5 = minor
	for i := len(rules) - 1; i >= 0; i-- {
		always, err := p.rule(rules[i])
		if err != nil {
			return nil, err
		}
		if always { // the verifier refuses code that is never reached
			return p, nil
		}
	}
	p.answer(false)
	return p, nil
}

// ebpf is a program, 8 bytes an instruction.
type ebpf []byte

func (p *ebpf) op(code, dst, src byte, offset int16, value int32) {
	var in [8]byte
	in[0], in[1] = code, src<<4|dst
	binary.NativeEndian.PutUint16(in[2:], uint16(offset))
	binary.NativeEndian.PutUint32(in[4:], uint32(value))
	*p = append(*p, in[:]...)
}

// load sets a register to a word of the context.
func (p *ebpf) load(reg byte, offset int16) { p.op(0x61, reg, 1, offset, 0) }

// answer ends the program.
func (p *ebpf) answer(allow bool) {
	value := int32(0)
	if allow {
		value = 1
	}
	p.op(0xb7, 0, 0, 0, value)
	p.op(0x95, 0, 0, 0, 0)
}

// rule adds a rule, and tells whether it matches always.
func (p *ebpf) rule(r specs.LinuxDeviceCgroup) (always bool, err error) {
	var access int32
	for _, c := range r.Access {
		bit, ok := map[rune]int32{'m': unix.BPF_DEVCG_ACC_MKNOD, 'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE}[c]
		if !ok {
			return false, fmt.Errorf("device access %q: unknown", r.Access)
		}
		access |= bit
	}
	if r.Access == "" {
		access = 7
	}
	var body ebpf
	var jumps []int // instructions that skip the rule
	skip := func(code, reg byte, value int32) {
		jumps = append(jumps, len(body)/8)
		body.op(code, reg, 0, 0, value)
	}
	const jne, jset = 0x56, 0x46 // of 32 bits
	switch r.Type {
	case "", "a":
	case "c", "u":
		skip(jne, 2, unix.BPF_DEVCG_DEV_CHAR)
	case "b":
		skip(jne, 2, unix.BPF_DEVCG_DEV_BLOCK)
	default:
		return false, fmt.Errorf("device type %q: unknown", r.Type)
	}
	if access != 7 {
		if r.Allow {
			skip(jset, 3, 7&^access) // something is asked for that isn't granted
		} else {
			body.op(jset, 3, 0, 1, access) // something is asked for that's denied
			jumps = append(jumps, len(body)/8)
			body.op(0x05, 0, 0, 0, 0)
		}
	}
	if r.Major != nil && *r.Major >= 0 {
		skip(jne, 4, int32(*r.Major))
	}
	if r.Minor != nil && *r.Minor >= 0 {
		skip(jne, 5, int32(*r.Minor))
	}
	body.answer(r.Allow)
	for _, at := range jumps {
		binary.NativeEndian.PutUint16(body[at*8+2:], uint16(len(body)/8-at-1))
	}
	*p = append(*p, body...)
	return len(jumps) == 0, nil
}
