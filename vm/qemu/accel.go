package qemu

import (
	"fmt"
	"strings"

	"sampan/vm"
)

// accelerator is how QEMU runs the guest's code.
type accelerator int

const (
	tcg accelerator = iota // translated: works everywhere, 10 to 30 times slower
	kvm
)

func (a accelerator) String() string {
	if a == kvm {
		return "KVM"
	}
	return "TCG"
}

// facts about the host that decide on the accelerator.
type facts struct {
	arch    string // GOARCH
	kvm     error  // of opening /dev/kvm for reading and writing
	cpuinfo string // /proc/cpuinfo
}

// choice of an accelerator, and why.
type choice struct {
	accelerator
	reason string // empty for KVM
	// fallback is set where TCG may be tried if the kernel is never reached.
	fallback bool
}

func (c choice) String() string {
	if c.reason == "" {
		return c.accelerator.String()
	}
	return fmt.Sprintf("%s (%s)", c.accelerator, c.reason)
}

// choose decides by what was asked for ("", "auto", "kvm" or "tcg"), the
// guest's architecture and facts.
//
// An openable /dev/kvm is not enough: on machines that are virtual themselves
// it may exist while guests hang in it, so the CPU must show the feature too.
// arm64 has no such flag; there the device alone counts.
func choose(want, arch string, f facts) (choice, error) {
	why := ""
	switch {
	case arch != f.arch:
		f.kvm = fmt.Errorf("an %s host can't run %s code", f.arch, arch)
		why = "KVM can't be used: " + f.kvm.Error()
	case f.kvm != nil:
		why = "KVM can't be used: " + f.kvm.Error()
	case f.arch == "amd64" && !hasFlag(f.cpuinfo, "vmx", "svm"):
		why = "the CPU shows neither vmx nor svm"
	}
	switch want {
	case "", "auto":
		if why != "" {
			return choice{accelerator: tcg, reason: why}, nil
		}
		return choice{accelerator: kvm, fallback: true}, nil
	case "tcg":
		return choice{accelerator: tcg, reason: "as configured"}, nil
	case "kvm":
		if f.kvm != nil {
			return choice{}, fmt.Errorf("accelerator kvm: %w: %w", vm.ErrUnsupported, f.kvm)
		}
		return choice{accelerator: kvm}, nil
	}
	return choice{}, fmt.Errorf("accelerator %q: want auto, kvm or tcg", want)
}

// hasFlag says whether a "flags" line of cpuinfo has one of the words.
func hasFlag(cpuinfo string, words ...string) bool {
	for line := range strings.Lines(cpuinfo) {
		name, list, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(list) {
			for _, w := range words {
				if flag == w {
					return true
				}
			}
		}
	}
	return false
}
