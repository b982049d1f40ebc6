// Command seccomp32 asks for personalities; built for 386, it makes 32-bit
// system calls. Docker's profile allows few personalities, the kernel any.
package main

import (
	"fmt"
	"syscall"
)

func main() {
	for _, persona := range []uintptr{0xffffffff, 0x1234} {
		_, _, errno := syscall.RawSyscall(syscall.SYS_PERSONALITY, persona, 0, 0)
		fmt.Printf("%#x: %d\n", persona, int(errno))
	}
}
