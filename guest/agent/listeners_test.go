package agent

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sampan/proto"
)

func TestListening(t *testing.T) {
	table := filepath.Join(t.TempDir(), "tcp")
	if err := os.WriteFile(table, []byte(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 010011AC:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0100007F:0051 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 4
   4: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0 0 0 0
   5: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 0 0 0 0
`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := listening(tcpListen, table); err != nil || !slices.Equal(got, []uint16{80, 8080}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := listening(udpOpen, table); err != nil || len(got) != 0 {
		t.Errorf("UDP: %v, %v", got, err)
	}
}

// The host is told at once, and of each change.
func TestListeners(t *testing.T) {
	conn, host := sockets(t)
	host.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan error, 1)
	go func() { ended <- listeners(conn) }()
	dec := json.NewDecoder(host)
	tcp := true
	has := func(port int) bool {
		t.Helper()
		var l proto.Listeners
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if tcp {
			return slices.Contains(l.TCP, uint16(port))
		}
		return slices.Contains(l.UDP, uint16(port))
	}
	has(0)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	for !has(port) { // others come and go
	}
	ln.Close()
	for has(port) {
	}
	tcp = false
	first, _, err := ephemeral("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var pc net.PacketConn
	for port = int(first) - 1; pc == nil && port > 1024; port-- {
		if pc, err = net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port)); pc != nil {
			break
		}
	}
	if pc == nil {
		t.Fatal(err)
	}
	client, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for !has(port) {
	}
	pc.Close()
	for has(port) {
	}
	if now, err := allListening(); err != nil || slices.Contains(now.UDP, uint16(client.LocalAddr().(*net.UDPAddr).Port)) {
		t.Errorf("a client's port is told: %v, %v", now, err)
	}
	host.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("goes on after its stream's end")
	}
}
