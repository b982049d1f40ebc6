package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// card is a machine's end of the network.
type card struct {
	net.Conn
	t     *testing.T
	n     *Network
	ident uint16 // of its pings

	port   uint16 // of its connection
	detach func()
}

func attach(t *testing.T, n *Network) card {
	t.Helper()
	nic, uplink, detach, err := n.Attach()
	if err != nil {
		t.Fatal(err)
	}
	if uplink.Gateway != n.Gateway().String() || uplink.Mac != nic.MAC.String() {
		t.Errorf("uplink %v", uplink)
	}
	c, err := net.FileConn(nic.File)
	if err != nil {
		t.Fatal(err)
	}
	nic.File.Close()
	t.Cleanup(func() { detach(); detach(); c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return card{c, t, n, 4711, 4711, detach}
}

// The card carries frames: an ARP request for the gateway is answered.
func TestAttach(t *testing.T) {
	n := newNetwork(t)
	var received, sent uint64
	for range 2 { // one machine after the other
		c := attach(t, n)
		mac, _ := net.ParseMAC(guestMAC)
		frame := append(append(bytes.Repeat([]byte{0xff}, 6), mac...), 8, 6, // broadcast, ARP
			0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
		frame = append(append(frame, mac...), n.host(2).AsSlice()...)
		frame = append(append(frame, make([]byte, 6)...), n.Gateway().AsSlice()...)
		if _, err := c.Write(frame); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 2000)
		l, err := c.Read(answer)
		received, sent = received+uint64(l), sent+uint64(len(frame))
		if err != nil || l < 42 || !bytes.Equal(answer[:6], mac) || answer[21] != 2 {
			t.Errorf("answer %x, %v", answer[:l], err)
		}
	}
	// A frame is counted just after it has been passed on. The second broadcast may
	// have gone to the first card too.
	until := time.Now().Add(10 * time.Second)
	for r, s := n.Traffic(); r != received && r != received+sent/2 || s != sent; r, s = n.Traffic() {
		if time.Now().After(until) {
			t.Fatalf("%d bytes received, %d sent; want %d, %d", r, s, received, sent)
		}
		time.Sleep(time.Millisecond)
	}
}

func newNetwork(t *testing.T) *Network {
	t.Helper()
	n, err := New(Config{Subnet: subnets[0], Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ping sends an echo request.
func (c card) ping(to netip.Addr, seq uint16) {
	c.t.Helper()
	h := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+56))
	h.SetType(header.ICMPv4Echo)
	h.SetIdent(c.ident)
	h.SetSequence(seq)
	h.SetChecksum(^checksum.Checksum(h, 0))
	gw, _ := net.ParseMAC(gatewayMAC)
	mac, _ := net.ParseMAC(guestMAC)
	frame := append(append(gw, mac...), 8, 0)
	if _, err := c.Write(append(frame, packet(c.n.host(2), to, h)...)); err != nil {
		c.t.Fatal(err)
	}
}

// icmp waits for an ICMP message.
func (c card) icmp() (from netip.Addr, h header.ICMPv4) {
	c.t.Helper()
	ip := c.next(header.ICMPv4ProtocolNumber)
	return netip.AddrFrom4(ip.SourceAddress().As4()), header.ICMPv4(ip.Payload())
}

// next waits for a packet of a protocol; a neighbour's ARP requests are answered.
func (c card) next(protocol tcpip.TransportProtocolNumber) header.IPv4 {
	c.t.Helper()
	mac, _ := net.ParseMAC(guestMAC)
	for {
		b := make([]byte, 2000)
		n, err := c.Read(b)
		if err != nil {
			c.t.Fatal(err)
		}
		if b = b[:n]; b[12] == 8 && b[13] == 6 && b[21] == 1 {
			answer := append(append(slices.Clone(b[6:12]), mac...), b[12:20]...)
			answer = append(append(answer, 0, 2), mac...)
			answer = append(append(append(answer, b[38:42]...), b[22:28]...), b[28:32]...)
			c.Write(answer)
			continue
		}
		ip := header.IPv4(b[14:])
		if ip.TransportProtocol() == protocol {
			return ip
		}
	}
}

// segment sends a TCP segment without data.
func (c card) segment(to netip.AddrPort, flags header.TCPFlags, seq, ack uint32) {
	c.t.Helper()
	h := header.TCP(make([]byte, header.TCPMinimumSize))
	h.Encode(&header.TCPFields{
		SrcPort: c.port, DstPort: to.Port(), SeqNum: seq, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	h.SetChecksum(^h.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, address4(c.n.host(2)), address4(to.Addr()), uint16(len(h)))))
	ip := header.IPv4(packet(c.n.host(2), to.Addr(), h))
	ip[9] = uint8(header.TCPProtocolNumber)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	gw, _ := net.ParseMAC(gatewayMAC)
	mac, _ := net.ParseMAC(guestMAC)
	if _, err := c.Write(append(append(append(gw, mac...), 8, 0), ip...)); err != nil {
		c.t.Fatal(err)
	}
}

// A connection that a machine has opened ends with the machine, whether it was
// answered or not, and the next machine can open others.
func TestConnectionsEnd(t *testing.T) {
	n := newNetwork(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	to := netip.AddrPortFrom(n.HostLoopback(), ln.Addr().(*net.TCPAddr).AddrPort().Port())
	for i, answered := range []bool{true, false, true} {
		c := attach(t, n)
		c.port += uint16(i)
		c.segment(to, header.TCPFlagSyn, 100, 0)
		outside, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer outside.Close()
		outside.SetDeadline(time.Now().Add(10 * time.Second))
		h := header.TCP(c.next(header.TCPProtocolNumber).Payload())
		if h.Flags() != header.TCPFlagSyn|header.TCPFlagAck {
			t.Fatalf("the answer has the flags %s", h.Flags())
		}
		if answered {
			c.segment(to, header.TCPFlagAck, 101, h.SequenceNumber()+1)
			outside.Write([]byte("x"))
			if data := header.TCP(c.next(header.TCPProtocolNumber).Payload()); !bytes.HasSuffix(data, []byte("x")) {
				t.Errorf("received %x", []byte(data))
			}
		}
		c.detach()
		if _, err := outside.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("answered %v: after the machine's end: %v", answered, err)
		}
	}
}

func TestSubnet(t *testing.T) {
	route := netip.MustParsePrefix
	for _, c := range []struct {
		routes []netip.Prefix
		want   netip.Prefix
	}{
		{nil, subnets[0]},
		{[]netip.Prefix{route("0.0.0.0/0"), route("10.0.0.0/8")}, subnets[0]},
		{[]netip.Prefix{route("192.168.0.0/16")}, subnets[2]},
		{[]netip.Prefix{route("192.168.127.9/32"), route("192.168.224.0/20"), route("172.16.0.0/12")}, subnets[3]},
		{[]netip.Prefix{route("0.0.0.0/1"), route("128.0.0.0/1")}, subnets[0]}, // a VPN takes all there is
	} {
		if got := firstFree(subnets, c.routes); got != c.want {
			t.Errorf("with %v: %s, want %s", c.routes, got, c.want)
		}
	}
	if _, err := New(Config{Subnet: route("10.0.0.0/8"), Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a /8 is taken")
	}
	n, err := New(Config{Subnet: route("10.1.2.3/24"), Log: slog.New(slog.DiscardHandler)})
	if err != nil || n.Gateway().String() != "10.1.2.1" || n.HostLoopback().String() != "10.1.2.254" {
		t.Errorf("%+v, %v", n, err)
	}
}

// upstream is a name server of the host: it answers every A question with
// 192.0.2.7, AAAA with an alias and an address, TXT with much, and "nx." with no.
func upstream(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		for b := make([]byte, 1<<16); ; {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			wrong := upstreamAnswer(b[:n], 512)
			wrong[0]++ // a forged one comes first
			pc.WriteTo(wrong, from)
			pc.WriteTo(upstreamAnswer(b[:n], 512), from)
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if q, err := readMessage(c); err == nil {
				writeMessage(c, upstreamAnswer(q, 1<<16))
			}
			c.Close()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func upstreamAnswer(query []byte, room int) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil {
		return nil
	}
	q := m.Questions[0]
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
	add := func(b dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: b})
	}
	m.Response, m.RecursionAvailable = true, true
	switch {
	case strings.HasPrefix(q.Name.String(), "nx."):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		add(&dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}})
	case q.Type == dnsmessage.TypeAAAA:
		add(&dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("alias.example.")})
		add(&dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::7").As16()})
	case q.Type == dnsmessage.TypeTXT:
		for range 10 {
			add(&dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 200)}})
		}
	}
	b, _ := m.Pack()
	if len(b) > room {
		m.Answers, m.Truncated = nil, true
		b, _ = m.Pack()
	}
	return b
}

func TestNames(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "hosts")
	write := func(text string) {
		if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("127.0.0.1 localhost\n127.0.1.1 mymachine\n10.9.8.7 Only.Here only # not everywhere\n2001:db8::1 six\n")
	d := newNames(Config{Hosts: hosts, Log: slog.New(slog.DiscardHandler)}, newNetwork(t))
	d.files.resolv.checked = time.Now().Add(time.Hour) // what it says is this:
	d.files.c = resolvConf{servers: []netip.AddrPort{upstream(t)}, timeout: 5 * time.Second, attempts: 1}

	ask := func(name string, typ dnsmessage.Type, transport string) string {
		t.Helper()
		q := dnsmessage.Message{Header: dnsmessage.Header{ID: 77, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var m dnsmessage.Message
		if err := m.Unpack(d.answer(b, transport)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m.ID != 77 || !m.Response {
			t.Errorf("%s: header %+v", name, m.Header)
		}
		var out []string
		for _, r := range m.Answers {
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				out = append(out, netip.AddrFrom4(b.A).String())
			case *dnsmessage.AAAAResource:
				out = append(out, netip.AddrFrom16(b.AAAA).String())
			case *dnsmessage.CNAMEResource:
				out = append(out, b.CNAME.String())
			case *dnsmessage.PTRResource:
				out = append(out, b.PTR.String())
			default:
				out = append(out, r.Header.Type.String())
			}
		}
		if m.Truncated {
			out = append(out, "truncated")
		}
		if m.RCode != dnsmessage.RCodeSuccess {
			out = append(out, m.RCode.String())
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		want string
	}{
		{"host.docker.internal.", dnsmessage.TypeA, "192.168.127.254"},
		{"gateway.docker.internal.", dnsmessage.TypeA, "192.168.127.1"},
		{"host.docker.internal.", dnsmessage.TypeAAAA, ""},
		{"ONLY.here.", dnsmessage.TypeA, "10.9.8.7"},
		{"only.", dnsmessage.TypeAAAA, ""},
		{"six.", dnsmessage.TypeA, ""},
		{"mymachine.", dnsmessage.TypeA, "192.168.127.254"},
		{"7.8.9.10.in-addr.arpa.", dnsmessage.TypePTR, "only.here. only."},
		{"localhost.", dnsmessage.TypeA, "192.0.2.7"},
		{"example.com.", dnsmessage.TypeA, "192.0.2.7"},
		{"example.com.", dnsmessage.TypeAAAA, "alias.example."},
		{"example.com.", dnsmessage.TypeTXT, "truncated"},
		{"nx.example.com.", dnsmessage.TypeA, "RCodeNameError"},
		{"nx.example.com.", dnsmessage.TypeAAAA, "RCodeNameError"},
	} {
		if got := ask(c.name, c.typ, "udp"); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.name, c.typ, got, c.want)
		}
	}
	if got := ask("example.com.", dnsmessage.TypeTXT, "tcp"); got != strings.TrimSpace(strings.Repeat("TypeTXT ", 10)) {
		t.Errorf("over TCP: %q", got)
	}
	// The file has changed.
	write("10.9.8.6 only\n")
	d.files.hosts.checked = time.Now().Add(-fileCheck)
	if got := ask("only.", dnsmessage.TypeA, "udp"); got != "10.9.8.6" {
		t.Errorf("after a change: %q", got)
	}
	// Nobody answers.
	d.files.c.servers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
	if got := ask("example.com.", dnsmessage.TypeA, "udp"); got != "RCodeServerFailure" {
		t.Errorf("without a server: %q", got)
	}
	if b := d.answer([]byte("nonsense"), "udp"); b != nil {
		t.Errorf("to nonsense: %x", b)
	}
}

// Clients that are connected and say nothing don't keep others from asking.
func TestSilentClients(t *testing.T) {
	d := newNames(Config{Log: slog.New(slog.DiscardHandler)}, newNetwork(t))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { d.serveTCP(ln) })
	wg.Go(func() { d.serveUDP(pc) })
	defer wg.Wait()
	defer pc.Close()
	defer ln.Close()
	dial := func(network, at string) net.Conn {
		c, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	for range maxClients {
		dial("tcp", ln.Addr().String())
	}
	if _, err := dial("tcp", ln.Addr().String()).Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one client too many reads %v, want the end", err)
	}
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 77}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("host.docker.internal."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	query, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c := dial("udp", pc.LocalAddr().String())
	c.Write(query)
	if n, err := c.Read(make([]byte, 512)); err != nil || n <= len(query) {
		t.Errorf("an answer of %d bytes, %v", n, err)
	}
}

// A name server that is dead, or has no answer, doesn't keep the others from
// being asked; nor is one that is slow given up for it.
func TestDeadNameServer(t *testing.T) {
	listen := func() net.PacketConn {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		return pc
	}
	addr := func(pc net.PacketConn) netip.AddrPort { return pc.LocalAddr().(*net.UDPAddr).AddrPort() }
	silent, slow, refuses := listen(), listen(), listen()
	slowAsked := make(chan func(), 1)
	go func() {
		b := make([]byte, 1<<16)
		if n, from, err := slow.ReadFrom(b); err == nil {
			slowAsked <- func() { slow.WriteTo(upstreamAnswer(b[:n], 512), from) }
		}
	}()
	go func() { // which answers that it won't, and then so that the slow one does
		b := make([]byte, 1<<16)
		for {
			n, from, err := refuses.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil {
				continue
			}
			m.Response, m.RCode = true, dnsmessage.RCodeRefused
			answer, _ := m.Pack()
			refuses.WriteTo(answer, from)
			select {
			case late := <-slowAsked:
				late()
			default:
			}
		}
	}()
	n := newNetwork(t)
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 77}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	query, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		servers []netip.AddrPort
		want    dnsmessage.RCode
	}{
		{"a silent one first", []netip.AddrPort{addr(silent), upstream(t)}, dnsmessage.RCodeSuccess},
		{"a slow one first", []netip.AddrPort{addr(slow), addr(refuses)}, dnsmessage.RCodeSuccess},
		{"one that refuses first", []netip.AddrPort{addr(refuses), upstream(t)}, dnsmessage.RCodeSuccess},
		{"all refuse", []netip.AddrPort{addr(refuses), addr(refuses)}, dnsmessage.RCodeRefused},
	} {
		d := newNames(Config{Log: slog.New(slog.DiscardHandler)}, n)
		d.files.resolv.checked = time.Now().Add(time.Hour)
		// An hour: that there is an answer shows that nobody waited for the silent.
		d.files.c = resolvConf{servers: c.servers, timeout: time.Hour, attempts: 1}
		answer := make(chan []byte, 1)
		go func() { answer <- d.answer(query, "udp") }()
		select {
		case b := <-answer:
			var m dnsmessage.Message
			if err := m.Unpack(b); err != nil || m.RCode != c.want || m.ID != 77 {
				t.Errorf("%s: %+v, %v", c.name, m.Header, err)
			}
		case <-time.After(4 * time.Second): // the guest's patience
			t.Errorf("%s: no answer", c.name)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x06docker\x08internal\x00\x00\x01\x00\x01"))
	n, err := New(Config{Subnet: subnets[0], Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	d := newNames(Config{Log: slog.New(slog.DiscardHandler)}, n)
	d.files.resolv.checked = time.Now().Add(time.Hour)
	d.files.c = resolvConf{} // nobody is asked
	f.Fuzz(func(t *testing.T, query []byte) {
		if b := d.answer(query, "udp"); b != nil && binary.BigEndian.Uint16(b) != binary.BigEndian.Uint16(query) {
			t.Errorf("%x is no answer to %x", b, query)
		}
	})
}

func TestResolvConf(t *testing.T) {
	c := parseResolvConf([]byte("# comment\nnameserver 10.0.0.1\nnameserver ::1\nsearch x\noptions ndots:1 timeout:1 attempts:3\nnameserver bad\n"))
	if fmt.Sprint(c.servers) != "[10.0.0.1:53 [::1]:53]" || c.timeout != time.Second || c.attempts != 3 {
		t.Errorf("%+v", c)
	}
	if c := parseResolvConf(nil); fmt.Sprint(c.servers) != "[127.0.0.1:53]" || c.attempts < 1 {
		t.Errorf("empty: %+v", c)
	}
	if got := arpa(netip.MustParseAddr("2001:db8::1")); got != "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa" {
		t.Error(got)
	}
}

// What listens on the host's IPv6 loopback alone is found there.
func TestHostLoopback(t *testing.T) {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	m := new(outbound).begin()
	defer m.end()
	c, err := m.dial(loopback4, port)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != ln.Addr().String() {
		t.Errorf("connected to %s, want %s", got, ln.Addr())
	}
	c.Close()
	ln.Close()
	if c, err := m.dial(loopback4, port); err == nil {
		c.Close()
		t.Error("connected to nobody")
	}
}
