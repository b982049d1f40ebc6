package agent

import (
	"bufio"
	"encoding/json"
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

// listeners tells the host which TCP ports processes in the guest's own network
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
	for last, first := []uint16(nil), true; ; first = false {
		ports, err := listening("/proc/net/tcp", "/proc/net/tcp6")
		if err != nil {
			return err
		}
		if first || !slices.Equal(ports, last) {
			if err := enc.Encode(proto.Listeners{TCP: ports}); err != nil {
				return nil
			}
			last = ports
		}
		select {
		case <-tick.C:
		case <-gone:
			return nil
		}
	}
}

// Local addresses in /proc/net/tcp and tcp6 that 127.0.0.1 reaches: itself and
// the unspecified ones, in the byte order of the machine, which is little-endian
// on all of ours.
var reachable = map[string]bool{
	"00000000": true, "0100007F": true,
	"00000000000000000000000000000000": true, "0000000000000000FFFF00000100007F": true,
}

// listening lists the ports in order.
func listening(tables ...string) ([]uint16, error) {
	const stateListen = "0A"
	ports := []uint16{}
	for _, name := range tables {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			// sl local_address rem_address st …
			col := strings.Fields(sc.Text())
			if len(col) < 4 || col[3] != stateListen {
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
