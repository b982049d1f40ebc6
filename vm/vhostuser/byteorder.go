//go:build !(armbe || arm64be || m68k || mips || mips64 || mips64p32 || ppc || ppc64 || s390 || s390x || shbe || sparc || sparc64)

package vhostuser

// littleEndianHost is missing where the host's byte order isn't the guest's: the
// halves of a ring's words are told apart by it, so the package must not build
// there.
const littleEndianHost = true
