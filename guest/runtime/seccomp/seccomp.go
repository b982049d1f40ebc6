// Package seccomp compiles the runtime-spec's system call filters to classic
// BPF, with libseccomp's meaning and in pure Go.
//
// For each architecture the program is a binary search over ranges of system
// call numbers that are treated alike, so that a call costs about ten
// instructions. Where the meaning isn't obvious:
//
//   - The native architecture is always in the filter. A call of any other
//     that isn't listed kills the thread.
//   - x32 calls come as x86-64 ones with a bit set in their number, and are
//     those of an unlisted architecture unless x32 is listed.
//   - Calls newer than all that a filter names are answered with ENOSYS instead
//     of a default EPERM, as in runc: C libraries then try an older one.
//   - A rule without conditions beats rules with conditions on the same call.
//     Rules whose action is the default one are dropped.
//   - On 32-bit x86, rules on socket and System V IPC calls apply to socketcall
//     and ipc too, which multiplex them.
//   - Arguments of 32-bit architectures are compared as 32 bits.
package seccomp

//go:generate go run gen.go

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Compile turns a filter into an array of struct sock_filter, in the byte
// order of all our architectures, and the flags of seccomp(2). native is the
// architecture that the program runs on. No filter is an empty program.
func Compile(s *specs.LinuxSeccomp, native specs.Arch) (code []byte, flags uint, err error) {
	if s == nil {
		return nil, 0, nil
	}
	if s.ListenerPath != "" {
		return nil, 0, fmt.Errorf("seccomp listener: %w", errors.ErrUnsupported)
	}
	for _, f := range s.Flags {
		bit, ok := filterFlags[f]
		if !ok {
			return nil, 0, fmt.Errorf("seccomp flag %q: %w", f, errors.ErrUnsupported)
		}
		flags |= bit
	}
	listed := append([]specs.Arch{native}, s.Architectures...)
	var p prog
	p.load(offArch)
	var blocks []prog
	var ids []uint32
	for _, name := range []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchAARCH64, specs.ArchARM} {
		if !slices.Contains(listed, name) && !(name == specs.ArchX86_64 && slices.Contains(listed, specs.ArchX32)) {
			continue
		}
		b, err := archBlock(s, name, listed)
		if err != nil {
			return nil, 0, err
		}
		blocks, ids = append(blocks, b), append(ids, arches[name].id)
	}
	for _, a := range listed {
		if _, ok := arches[a]; !ok {
			return nil, 0, fmt.Errorf("seccomp architecture %q: %w", a, errors.ErrUnsupported)
		}
	}
	for i, b := range blocks {
		p.jump(jeq, ids[i], 0, 1)
		p.skip(1)
		p.skip(len(b))
		p = append(p, b...)
	}
	p.ret(retKillThread)
	const maxProgram = 4096 // BPF_MAXINSNS
	if len(p) > maxProgram {
		return nil, 0, fmt.Errorf("seccomp filter of %d instructions: the kernel takes %d", len(p), maxProgram)
	}
	return p.bytes(), flags, nil
}

// filterFlags of seccomp(2). TSYNC means nothing here: the process has one
// thread when it's executed.
var filterFlags = map[specs.LinuxSeccompFlag]uint{
	specs.LinuxSeccompFlagLog:                           1 << 1,
	specs.LinuxSeccompFlagSpecAllow:                     1 << 2,
	specs.LinuxSeccompFlagWaitKillableRecv:              0, // only of use with a listener
	specs.LinuxSeccompFlag("SECCOMP_FILTER_FLAG_TSYNC"): 0,
}

// architecture is a set of system calls.
type architecture struct {
	id    uint32 // AUDIT_ARCH_*
	calls string
	wide  bool // arguments have 64 bits
}

const x32Bit = 0x40000000

var arches = map[specs.Arch]architecture{
	specs.ArchX86_64:  {0xc000003e, callsX86_64, true},
	specs.ArchX86:     {0x40000003, callsX86, false},
	specs.ArchX32:     {0xc000003e, callsX32, false},
	specs.ArchAARCH64: {0xc00000b7, callsAARCH64, true},
	specs.ArchARM:     {0x40000028, callsARM, false},
}

// numbers parses a table: a name a line, counting from 0, "=N" sets the count.
func numbers(table string) map[string]uint32 {
	m := make(map[string]uint32, 512)
	var n uint32
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if at, ok := strings.CutPrefix(line, "="); ok {
			v, _ := strconv.ParseUint(at, 10, 32)
			n = uint32(v)
			continue
		}
		if line != "" {
			m[line] = n
			n++
		}
	}
	return m
}

// archBlock is the code of one AUDIT_ARCH; all its paths end in a verdict.
func archBlock(s *specs.LinuxSeccomp, name specs.Arch, listed []specs.Arch) (prog, error) {
	var p prog
	p.load(offNumber)
	if name == specs.ArchX86_64 {
		var own, x32 prog
		own.ret(retKillThread)
		x32.ret(retKillThread)
		var err error
		if slices.Contains(listed, specs.ArchX86_64) {
			if own, err = callsBlock(s, specs.ArchX86_64, 0); err != nil {
				return nil, err
			}
		}
		if slices.Contains(listed, specs.ArchX32) {
			if x32, err = callsBlock(s, specs.ArchX32, x32Bit); err != nil {
				return nil, err
			}
		}
		return append(p, branch(x32Bit, own, x32)...), nil
	}
	b, err := callsBlock(s, name, 0)
	return append(p, b...), err
}

// behaviour is what happens to a call.
type behaviour struct {
	rules   []rule // in order; the first that matches
	verdict uint32 // when none does
}

type rule struct {
	args    []specs.LinuxSeccompArg // all of them
	verdict uint32
}

// callsBlock is the search over the calls of an architecture.
func callsBlock(s *specs.LinuxSeccomp, name specs.Arch, bit uint32) (prog, error) {
	fallback, err := verdict(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	a := arches[name]
	calls, newest, err := behaviours(s, name, fallback)
	if err != nil {
		return nil, err
	}
	var starts []uint32
	var codes []prog
	next := uint32(0)
	add := func(at uint32, b behaviour) {
		code := b.code(a.wide)
		if n := len(codes); n > 0 && slices.Equal(codes[n-1], code) {
			return
		}
		starts, codes = append(starts, at), append(codes, code)
	}
	for _, c := range calls {
		if c.nr > next || len(codes) == 0 && c.nr > 0 {
			add(next, behaviour{verdict: fallback})
		}
		add(c.nr, c.behaviour)
		next = c.nr + 1
	}
	beyond := fallback
	if fallback&retAction == retErrno || fallback&retAction == retTrap || fallback == retKillThread || fallback == retKillProcess {
		if len(calls) > 0 {
			beyond = retErrno | 38 // ENOSYS
		}
	}
	if newest+1 > next {
		add(next, behaviour{verdict: fallback})
		next = newest + 1
	}
	add(next, behaviour{verdict: beyond})
	for i := range starts {
		starts[i] |= bit
	}
	return search(starts, codes), nil
}

// search is a binary search: codes[i] is for numbers from starts[i] on.
func search(starts []uint32, codes []prog) prog {
	if len(codes) == 1 {
		return codes[0]
	}
	mid := len(codes) / 2
	return branch(starts[mid], search(starts[:mid], codes[:mid]), search(starts[mid:], codes[mid:]))
}

// call is what happens to one number.
type call struct {
	nr uint32
	behaviour
}

// behaviours are what the filter says about calls, by number, and the newest
// number that it names at all.
func behaviours(s *specs.LinuxSeccomp, name specs.Arch, fallback uint32) (list []call, newest uint32, err error) {
	known := numbers(arches[name].calls)
	found := map[uint32]*behaviour{}
	plain := map[uint32]bool{}
	add := func(nr uint32, args []specs.LinuxSeccompArg, v uint32) {
		b := found[nr]
		if b == nil {
			b = &behaviour{verdict: fallback}
			found[nr] = b
		}
		switch {
		case plain[nr]:
		case len(args) == 0:
			b.rules, b.verdict, plain[nr] = nil, v, true
		default:
			b.rules = append(b.rules, rule{args, v})
		}
	}
	for _, sc := range s.Syscalls {
		v, err := verdict(sc.Action, sc.ErrnoRet)
		if err != nil {
			return nil, 0, err
		}
		for _, callName := range sc.Names {
			nr, ok := known[callName]
			if ok {
				newest = max(newest, nr)
			}
			if v == fallback {
				continue
			}
			for _, args := range alternatives(sc.Args) {
				if ok {
					add(nr, args, v)
				}
				if m, muxed := multiplexed[callName]; muxed && name == specs.ArchX86 {
					add(m.nr, m.args(args), v)
				}
			}
		}
	}
	for nr, b := range found {
		list = append(list, call{nr, *b})
	}
	slices.SortFunc(list, func(a, b call) int { return int(a.nr) - int(b.nr) })
	return list, newest, nil
}

// alternatives are the conditions of which one has to hold. Conditions on
// different arguments all have to; with two on the same argument, each is an
// alternative (as in runc).
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var each [][]specs.LinuxSeccompArg
			for _, a := range args {
				each = append(each, []specs.LinuxSeccompArg{a})
			}
			return each
		}
		seen[a.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}

// mux is a call that is also reached through another: its number and the
// first argument there.
type mux struct{ nr, first uint32 }

// args are a rule's conditions on the multiplexer. Its arguments are behind a
// pointer, so that only the first is known (libseccomp overwrites it too).
func (m mux) args(args []specs.LinuxSeccompArg) []specs.LinuxSeccompArg {
	return []specs.LinuxSeccompArg{{Index: 0, Value: uint64(m.first), Op: specs.OpEqualTo}}
}

// multiplexed calls of 32-bit x86 (include/uapi/linux/net.h, ipc.h).
var multiplexed = map[string]mux{
	"socket": {102, 1}, "bind": {102, 2}, "connect": {102, 3}, "listen": {102, 4},
	"accept": {102, 5}, "getsockname": {102, 6}, "getpeername": {102, 7},
	"socketpair": {102, 8}, "send": {102, 9}, "recv": {102, 10}, "sendto": {102, 11},
	"recvfrom": {102, 12}, "shutdown": {102, 13}, "setsockopt": {102, 14},
	"getsockopt": {102, 15}, "sendmsg": {102, 16}, "recvmsg": {102, 17},
	"accept4": {102, 18}, "recvmmsg": {102, 19}, "sendmmsg": {102, 20},
	"semop": {117, 1}, "semget": {117, 2}, "semctl": {117, 3}, "semtimedop": {117, 4},
	"msgsnd": {117, 11}, "msgrcv": {117, 12}, "msgget": {117, 13}, "msgctl": {117, 14},
	"shmat": {117, 21}, "shmdt": {117, 22}, "shmget": {117, 23}, "shmctl": {117, 24},
}
