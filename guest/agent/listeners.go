package agent

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sampan/proto"
)

// listenersPeriod is how often the listening sockets are looked at, and only
// while the host wants to know: Linux tells of their end, but not of their
// beginning.
const listenersPeriod = 300 * time.Millisecond

// listeners tells the host which ports processes in the guest's own network
// namespace listen on, now and after each change, until the stream ends.
func listeners(stream net.Conn) error {
	defer stream.Close()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		stream.Read(make([]byte, 1)) // the host sends nothing: this is its end
	}()
	tick := time.NewTicker(listenersPeriod)
	defer tick.Stop()
	enc := json.NewEncoder(stream)
	var last *proto.Listeners
	for {
		now, err := allListening()
		if err != nil {
			return err
		}
		if last == nil || !slices.Equal(now.TCP, last.TCP) || !slices.Equal(now.UDP, last.UDP) {
			if err := enc.Encode(now); err != nil {
				return nil
			}
			last = now
		}
		select {
		case <-tick.C:
		case <-gone:
			return nil
		}
	}
}

// States in the tables of sockets: of TCP one that listens, of UDP one that has
// no peer.
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

// allListening looks at all tables.
func allListening() (*proto.Listeners, error) {
	tcp, err := listening(tcpListen, "/proc/net/tcp", "/proc/net/tcp6")
	if err != nil {
		return nil, err
	}
	udp, err := listening(udpOpen, "/proc/net/udp", "/proc/net/udp6")
	if err != nil {
		return nil, err
	}
	first, last, err := ephemeral("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return nil, err
	}
	udp = slices.DeleteFunc(udp, func(p uint16) bool { return first <= p && p <= last })
	return &proto.Listeners{TCP: tcp, UDP: udp}, nil
}

// ephemeral reads which ports sockets get that ask for none.
func ephemeral(file string) (first, last uint16, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(string(b), &first, &last); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", file, err)
	}
	return first, last, nil
}

// Local addresses in these tables that 127.0.0.1 reaches: itself and the
// unspecified ones, in the byte order of the machine, which is little-endian
// on all of ours.
var reachable = map[string]bool{
	"00000000": true, "0100007F": true,
	"00000000000000000000000000000000": true, "0000000000000000FFFF00000100007F": true,
}

// listening lists the ports of sockets in a state, in order.
func listening(state string, tables ...string) ([]uint16, error) {
	ports := []uint16{}
	for _, name := range tables {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			// sl local_address rem_address st …
			col := strings.Fields(sc.Text())
			if len(col) < 4 || col[3] != state {
				continue
			}
			addr, port, ok := strings.Cut(col[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if ok && err == nil && reachable[addr] {
				ports = append(ports, uint16(n))
			}
		}
		f.Close()
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}
