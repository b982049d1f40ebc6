package seccomp

import (
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Verdicts (include/uapi/linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retAction = 0xffff0000
)

// verdict is what the kernel calls an action.
func verdict(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(1) // EPERM
	if errno != nil {
		if *errno > 0xffff {
			return 0, fmt.Errorf("seccomp errno %d: out of range", *errno)
		}
		data = uint32(*errno)
	}
	switch action {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	}
	return 0, fmt.Errorf("seccomp action %q: not supported", action)
}

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Codes of classic BPF (linux/bpf_common.h).
const (
	ldAbs = 0x20
	and   = 0x54
	ja    = 0x05
	jeq   = 0x15
	jgt   = 0x25
	jge   = 0x35
	retK  = 0x06
)

// instruction is struct sock_filter.
type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// prog is a run of instructions that is left by its verdicts, or at its end.
type prog []instruction

func (p *prog) load(offset uint32) { *p = append(*p, instruction{code: ldAbs, k: offset}) }
func (p *prog) ret(v uint32)       { *p = append(*p, instruction{code: retK, k: v}) }
func (p *prog) skip(n int)         { *p = append(*p, instruction{code: ja, k: uint32(n)}) }
func (p *prog) jump(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, instruction{code, jt, jf, k})
}

// branch runs high for a number of at least k, else low; both end in verdicts.
func branch(k uint32, low, high prog) prog {
	var p prog
	if len(low) <= 0xff {
		p.jump(jge, k, uint8(len(low)), 0)
	} else { // a conditional jump reaches no further
		p.jump(jge, k, 0, 1)
		p.skip(len(low))
	}
	return append(append(p, low...), high...)
}

func (p prog) bytes() []byte {
	out := make([]byte, 0, 8*len(p))
	for _, in := range p {
		out = binary.LittleEndian.AppendUint16(out, in.code)
		out = append(out, in.jt, in.jf)
		out = binary.LittleEndian.AppendUint32(out, in.k)
	}
	return out
}

// code tests the rules in order.
func (b behaviour) code(wide bool) prog {
	var p prog
	for _, r := range b.rules {
		p = append(p, r.code(wide)...)
	}
	p.ret(b.verdict)
	return p
}

// code gives the verdict when all conditions hold, and falls off its end when
// one doesn't.
func (r rule) code(wide bool) prog {
	tail := prog{{code: retK, k: r.verdict}}
	for i := len(r.args) - 1; i >= 0; i-- {
		tail = append(condition(r.args[i], wide, uint8(len(tail))), tail...)
	}
	return tail
}

// condition goes on at its end when it holds, else it skips rest instructions.
func condition(a specs.LinuxSeccompArg, wide bool, rest uint8) prog {
	low := uint32(offArgs + 8*a.Index)
	value, mask := a.Value, ^uint64(0)
	op := a.Op
	if op == specs.OpMaskedEqual {
		mask, value, op = a.Value, a.ValueTwo, specs.OpEqualTo
	}
	var p prog
	word := func(offset uint32, m uint32) {
		p.load(offset)
		if m != ^uint32(0) {
			p = append(p, instruction{code: and, k: m})
		}
	}
	lo := func(v, m uint32) { // the last word decides
		word(low, m)
		code, negate := comparison(op)
		if negate {
			p.jump(code, v, rest, 0)
		} else {
			p.jump(code, v, 0, rest)
		}
	}
	if !wide {
		lo(uint32(value), uint32(mask))
		return p
	}
	var last prog
	lo(uint32(value), uint32(mask))
	last, p = p, nil
	n := uint8(len(last))
	hi := uint32(value >> 32)
	word(low+4, uint32(mask>>32))
	switch op {
	case specs.OpEqualTo:
		p.jump(jeq, hi, 0, n+rest)
	case specs.OpNotEqual:
		p.jump(jeq, hi, 0, n)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		p.jump(jgt, hi, n+1, 0)
		p.jump(jeq, hi, 0, n+rest)
	case specs.OpLessThan, specs.OpLessEqual:
		p.jump(jgt, hi, n+1+rest, 0)
		p.jump(jeq, hi, 0, n)
	}
	return append(p, last...)
}

// comparison is the jump for an operator, and whether it's true when the
// operator is not.
func comparison(op specs.LinuxSeccompOperator) (code uint16, negate bool) {
	switch op {
	case specs.OpNotEqual:
		return jeq, true
	case specs.OpGreaterThan:
		return jgt, false
	case specs.OpGreaterEqual:
		return jge, false
	case specs.OpLessThan:
		return jge, true
	case specs.OpLessEqual:
		return jgt, true
	}
	return jeq, false
}
