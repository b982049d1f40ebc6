// Command echo runs in a container of the benchmark: vm/vmtest/guest's commands
// on TCP, from one process, so that what is measured is the way to it. It echoes
// datagrams, too. With arguments it asks, and prints milliseconds:
//
//	echo trip N              mean of N round trips to an echo beside it
//	echo ask NAME SERVER N   N questions of names; the container's own name server is ""
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"sampan/vm/vmtest/guest"
	"sampan/vm/vmtest/speed"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		return serve(ctx)
	case len(args) == 2 && args[0] == "trip":
		return trip(ctx, args[1])
	case len(args) == 4 && args[0] == "ask":
		return ask(args[1], args[2], args[3])
	}
	return fmt.Errorf("%q: not a command", args)
}

func trip(ctx context.Context, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	peer := speed.Peer{Dial: func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}}
	took, err := peer.RoundTrip(ctx, n)
	if err != nil {
		return err
	}
	_, err = fmt.Println(took)
	return err
}

func serve(ctx context.Context) error {
	pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", guest.CommandPort))
	if err != nil {
		return err
	}
	go datagrams(pc)
	return guest.Serve(ctx, guest.Env{
		Listen: func(port uint32) (net.Listener, error) {
			return net.Listen("tcp", fmt.Sprintf(":%d", port))
		},
		Dial: func(uint32) (net.Conn, error) { // nobody needs to be called
			c, _ := net.Pipe()
			return c, nil
		},
	})
}
