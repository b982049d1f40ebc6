package agent

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"sampan/proto"
)

const dialTimeout = 20 * time.Second

// dial connects the stream to an address of the guest's network and carries
// bytes until both directions have ended. Where nobody listens the stream just
// ends: that is the host's to tell, not an error.
func dial(stream net.Conn, netw, address string) error {
	defer stream.Close()
	// TODO: "udp", once the protocol says how datagrams are framed.
	if netw != "tcp" {
		return fmt.Errorf("dial %s: not supported", netw)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if net.ParseIP(host) == nil {
		return fmt.Errorf("dial %s: not an IP address", address)
	}
	conn, err := net.DialTimeout(netw, address, dialTimeout)
	if err != nil {
		return nil
	}
	defer conn.Close()
	if _, err := stream.Write([]byte{proto.DialOK}); err != nil {
		return nil
	}
	target, ok := stream.(duplex)
	if !ok {
		return errors.New("stream without half-close")
	}
	proxy(target, conn.(*net.TCPConn))
	return nil
}

// duplex is a connection that can be copied and half-closed.
type duplex interface {
	net.Conn
	syscallConn
	closeWriter
}

// proxy copies both ways, passing half-closes on. An error in one direction
// ends both; the TCP side then sees a reset.
func proxy(stream duplex, conn *net.TCPConn) {
	fail := func() {
		conn.SetLinger(0)
		conn.Close()
		stream.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if copyAll(conn, stream) != nil || conn.CloseWrite() != nil {
			fail()
		}
	})
	if copyAll(stream, conn) != nil || stream.CloseWrite() != nil {
		fail()
	}
	wg.Wait()
}
