package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// table is Names: "web" has one address of each family, "v4" no IPv6 one,
// "many" more than fit.
type table struct{}

func (table) Lookup(name string) ([]netip.Addr, bool) {
	switch name {
	case "web", "web.net":
		return []netip.Addr{netip.MustParseAddr("172.18.0.2"), netip.MustParseAddr("fd00::2")}, true
	case "v4":
		return []netip.Addr{netip.MustParseAddr("172.18.0.3")}, true
	case "many":
		var list []netip.Addr
		for a := netip.MustParseAddr("10.0.0.1"); len(list) < 200; a = a.Next() {
			list = append(list, a)
		}
		return list, true
	}
	return nil, false
}

func (table) Reverse(a netip.Addr) string {
	if a == netip.MustParseAddr("172.18.0.2") || a == netip.MustParseAddr("fd00::2") {
		return "web.net"
	}
	return ""
}

// outside answers as another name server: A of "outside" is 192.0.2.1, "large"
// has an answer that takes TCP, anything else does not exist.
func outside(t *testing.T) string {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	answer := func(msg []byte, cut bool) []byte {
		q, err := parse(msg)
		if err != nil {
			t.Error(err)
			return nil
		}
		head := dnsmessage.ResourceHeader{Name: q.asked.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
		a := dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}
		name := q.asked.Name.String()
		switch {
		case name == "outside.":
			msg, err = q.reply([]dnsmessage.Resource{a})
		case name == "large." && !cut:
			msg, err = q.reply(slices.Repeat([]dnsmessage.Resource{a}, 100))
		case name == "large.":
			msg, err = q.reply(nil)
			msg[2] |= 2 // TC
		default:
			q.rcode = dnsmessage.RCodeNameError
			msg, err = q.reply(nil)
		}
		if err != nil {
			t.Error(err)
		}
		return msg
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(answer(buf[:n], true), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			if msg, err := readTCP(c); err == nil {
				writeTCP(c, answer(msg, false))
			}
			c.Close()
		}
	}()
	return udp.LocalAddr().String()
}

func serve(t *testing.T, servers ...string) string {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(Config{Names: table{}, Servers: func() []string { return servers }, Dial: new(net.Dialer).DialContext}, udp, tcp)
	t.Cleanup(func() { s.Close() })
	return udp.LocalAddr().String()
}

// query is a message; size 0: without EDNS.
func query(t *testing.T, name string, typ dnsmessage.Type, size int, version uint32) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, 0, false); err != nil {
			t.Fatal(err)
		}
		h.TTL |= version << 16
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// ask sends a message and describes the answer: its code, TC, EDNS, addresses.
func ask(t *testing.T, network, server string, msg []byte) string {
	t.Helper()
	c, err := net.Dial(network, server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var raw []byte
	if network == "tcp" {
		if err := writeTCP(c, msg); err != nil {
			t.Fatal(err)
		}
		raw, err = readTCP(c)
	} else {
		c.Write(msg)
		raw = make([]byte, 65535)
		var n int
		n, err = c.Read(raw)
		raw = raw[:n]
	}
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	if m.ID != binary.BigEndian.Uint16(msg) || !m.Response {
		t.Errorf("header %v", m.Header)
	}
	out := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	if m.Truncated {
		out = append(out, "cut")
	}
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			out = append(out, "edns")
			if code := r.Header.ExtendedRCode(m.RCode); code != m.RCode {
				out = append(out, code.String())
			}
		}
	}
	for i, r := range m.Answers {
		if i == 3 {
			out = append(out, "…")
			break
		}
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, b.PTR.String())
		}
	}
	return strings.Join(out, " ")
}

func TestAnswers(t *testing.T) {
	// The first server is dead: the second is asked.
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	server := serve(t, gone, outside(t))
	for _, c := range []struct {
		network, name string
		typ           dnsmessage.Type
		size          int
		want          string
	}{
		{"udp", "web.", dnsmessage.TypeA, 0, "Success 172.18.0.2"},
		{"tcp", "web.", dnsmessage.TypeA, 0, "Success 172.18.0.2"},
		{"udp", "WEB.Net.", dnsmessage.TypeA, 0, "Success 172.18.0.2"},
		{"udp", "web.", dnsmessage.TypeAAAA, 1232, "Success edns fd00::2"},
		{"udp", "v4.", dnsmessage.TypeAAAA, 0, "Success"},
		{"udp", "v4.", dnsmessage.TypeMX, 0, "Success"},
		{"udp", "2.0.18.172.in-addr.arpa.", dnsmessage.TypePTR, 0, "Success web.net."},
		{"udp", "2." + strings.Repeat("0.", 28) + "d.f.ip6.arpa.", dnsmessage.TypePTR, 0, "NameError"},
		{"udp", "2." + strings.Repeat("0.", 29) + "d.f.ip6.arpa.", dnsmessage.TypePTR, 0, "Success web.net."},
		{"udp", "9.0.18.172.in-addr.arpa.", dnsmessage.TypePTR, 0, "NameError"},
		{"udp", "many.", dnsmessage.TypeA, 0, "Success cut"},
		{"udp", "many.", dnsmessage.TypeA, 4096, "Success edns 10.0.0.1 10.0.0.2 10.0.0.3 …"},
		{"tcp", "many.", dnsmessage.TypeA, 0, "Success 10.0.0.1 10.0.0.2 10.0.0.3 …"},
		{"udp", "outside.", dnsmessage.TypeA, 0, "Success 192.0.2.1"},
		{"tcp", "outside.", dnsmessage.TypeA, 0, "Success 192.0.2.1"},
		{"udp", "large.", dnsmessage.TypeA, 0, "Success cut"},
		{"tcp", "large.", dnsmessage.TypeA, 0, "Success 192.0.2.1 192.0.2.1 192.0.2.1 …"},
		{"udp", "nobody.", dnsmessage.TypeA, 0, "NameError"},
	} {
		if got := ask(t, c.network, server, query(t, c.name, c.typ, c.size, 0)); got != c.want {
			t.Errorf("%s %s %s size %d: %q, want %q", c.network, c.name, c.typ, c.size, got, c.want)
		}
	}
	if got := ask(t, "udp", server, query(t, "web.", dnsmessage.TypeA, 1232, 1)); got != "Success edns 16" {
		t.Errorf("unknown version of EDNS: %q", got)
	}
	status := query(t, "web.", dnsmessage.TypeA, 0, 0)
	status[2] |= 2 << 3 // the opcode STATUS
	if got := ask(t, "udp", server, status); got != "NotImplemented" {
		t.Errorf("opcode: %q", got)
	}
	if got := ask(t, "udp", server, query(t, "web.", dnsmessage.TypeA, 0, 0)[:12]); got != "FormatError" {
		t.Errorf("question cut off: %q", got)
	}
}

// Without name servers other names fail, and are not said to be missing.
func TestNoServers(t *testing.T) {
	server := serve(t)
	if got := ask(t, "udp", server, query(t, "outside.", dnsmessage.TypeA, 0, 0)); got != "ServerFailure" {
		t.Errorf("got %q", got)
	}
	if got := ask(t, "udp", server, query(t, "web.", dnsmessage.TypeA, 0, 0)); got != "Success 172.18.0.2" {
		t.Errorf("got %q", got)
	}
}

// Answers that don't fit the question are not passed on.
func TestForgedAnswers(t *testing.T) {
	liar, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	go func() {
		buf := make([]byte, 4096)
		n, from, err := liar.ReadFrom(buf)
		if err != nil {
			return
		}
		q, _ := parse(buf[:n])
		head := dnsmessage.ResourceHeader{Name: q.asked.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
		forged, _ := q.reply([]dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{6, 6, 6, 6}}}})
		for _, spoil := range []func([]byte){
			func(m []byte) { m[0] ^= 1 },    // ID
			func(m []byte) { m[2] &^= 128 }, // no response
			func(m []byte) { m[13] = 'x' },  // another name
		} {
			m := slices.Clone(forged)
			spoil(m)
			liar.WriteTo(m, from)
		}
		liar.WriteTo(buf[:3], from)
		good, _ := q.reply([]dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{1, 2, 3, 4}}}})
		liar.WriteTo(good, from)
	}()
	server := serve(t, liar.LocalAddr().String())
	if got := ask(t, "udp", server, query(t, "outside.", dnsmessage.TypeA, 0, 0)); got != "Success 1.2.3.4" {
		t.Errorf("got %q", got)
	}
}

// Close ends what waits for a name server, and connections.
func TestClose(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	udp, _ := net.ListenPacket("udp", "127.0.0.1:0")
	tcp, _ := net.Listen("tcp", "127.0.0.1:0")
	asked := make(chan struct{})
	s := Serve(Config{Names: table{}, Servers: func() []string { return []string{silent.LocalAddr().String()} },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			defer close(asked)
			return new(net.Dialer).DialContext(ctx, network, address)
		}}, udp, tcp)
	c, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	open, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	c.Write(query(t, "outside.", dnsmessage.TypeA, 0, 0))
	<-asked
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience / 2):
		t.Fatal("Close waits")
	}
}

func FuzzMessage(f *testing.F) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	seed, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:12])
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, err := parse(msg)
		if err != nil {
			return
		}
		resources, ok := q.local(table{})
		if !ok {
			q.answeredBy(msg, msg)
			return
		}
		out, err := q.reply(resources)
		if err != nil {
			t.Fatalf("%x: %v", msg, err)
		}
		if out, err = q.fit(out, q.size); err != nil || len(out) > q.size {
			t.Fatalf("%x: %d bytes, at most %d; %v", msg, len(out), q.size, err)
		}
	})
}
