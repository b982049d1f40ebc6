// Command sampan-stage2 is stage 2 of the container runtime as an executable
// of its own, which starts faster than the agent's would, and the small init.
package main

import (
	"fmt"
	"os"

	"sampan/guest/runtime/stage2"
)

func main() {
	stage2.Main()
	fmt.Fprintln(os.Stderr, "sampan-stage2: started by the container runtime, never by hand")
	os.Exit(2)
}
