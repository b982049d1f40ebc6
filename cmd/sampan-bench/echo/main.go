// Command echo runs in a container of the benchmark: vm/vmtest/guest's commands
// on TCP, from one process, so that what is measured is the way to it. It echoes
// datagrams, too. "echo ask NAME SERVER N" measures N questions of names; the
// container's own name server is "".
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"sampan/vm/vmtest/guest"
)

func main() {
	if len(os.Args) == 5 && os.Args[1] == "ask" {
		if err := ask(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "ask:", err)
			os.Exit(1)
		}
		return
	}
	pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", guest.CommandPort))
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
	go datagrams(pc)
	err = guest.Serve(context.Background(), guest.Env{
		Listen: func(port uint32) (net.Listener, error) {
			return net.Listen("tcp", fmt.Sprintf(":%d", port))
		},
		Dial: func(uint32) (net.Conn, error) { // nobody needs to be called
			c, _ := net.Pipe()
			return c, nil
		},
	})
	fmt.Fprintln(os.Stderr, "echo:", err)
	os.Exit(1)
}
