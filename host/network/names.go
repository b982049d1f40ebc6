package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	dnsPort    = 53
	maxMessage = 65535
	// maxQueries bounds those under way; more are dropped, and asked again.
	maxQueries = 512
	// maxClients bounds TCP connections, most of which are silent.
	maxClients = 512
	// dnsIdle is how long a TCP connection of a client may be silent.
	dnsIdle = 10 * time.Second
	ttl     = 10 // seconds, of what we answer ourselves
	// nextServer is how long one of the host's name servers may be silent before
	// the next is asked too: so that two dead ones cost less than the 4 seconds
	// that the guest waits for us.
	nextServer = time.Second
)

// names is the guest's name server. What the host's /etc/hosts says it answers
// by itself; every other question goes, as it is, to the name servers that the
// host asks, so that all types of records, EDNS and split DNS (a resolver on the
// host's loopback, systemd-resolved or a VPN's) are as on the host.
//
// There is no IPv6 to the outside, and so no AAAA records are passed on.
type names struct {
	net    *Network
	files  *resolverFiles
	log    *slog.Logger
	active chan struct{} // a place for each query under way over UDP
	open   chan struct{} // and for each TCP connection
}

func newNames(cfg Config, n *Network) *names {
	return &names{
		net: n, files: newResolverFiles(cfg.ResolvConf, cfg.Hosts), log: cfg.Log,
		active: make(chan struct{}, maxQueries), open: make(chan struct{}, maxClients),
	}
}

// serve answers on the gateway's address, for the life of the stack.
func (d *names) serve(s *stack.Stack) error {
	at := tcpip.FullAddress{NIC: nic, Addr: address4(d.net.Gateway()), Port: dnsPort}
	pc, err := gonet.DialUDP(s, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	ln, err := gonet.ListenTCP(s, at, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	go d.serveUDP(pc)
	go d.serveTCP(ln)
	return nil
}

func (d *names) serveUDP(pc net.PacketConn) {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			d.log.Error("name server ends", "error", err)
			return
		}
		select {
		case d.active <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		go func() {
			defer func() { <-d.active }()
			if answer := d.answer(query, "udp"); answer != nil {
				pc.WriteTo(answer, from)
			}
		}()
	}
}

func (d *names) serveTCP(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			d.log.Error("name server ends", "error", err)
			return
		}
		select {
		case d.open <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		go func() {
			defer func() { <-d.open }()
			defer conn.Close()
			for {
				conn.SetDeadline(time.Now().Add(dnsIdle))
				query, err := readMessage(conn)
				if err != nil {
					return
				}
				answer := d.answer(query, "tcp")
				if answer == nil || writeMessage(conn, answer) != nil {
					return
				}
			}
		}()
	}
}

// readMessage and writeMessage are the framing of DNS over TCP (RFC 1035,
// 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// answer returns the answer to a query; nil is none, to what is no query.
func (d *names) answer(query []byte, transport string) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return reply(h, nil, dnsmessage.RCodeFormatError, nil)
	}
	if h.OpCode == 0 && q.Class == dnsmessage.ClassINET {
		if found, records := d.local(q); found {
			return reply(h, &q, dnsmessage.RCodeSuccess, records)
		}
	}
	answer, err := d.forward(query, q, transport)
	if err != nil {
		d.log.Debug("name server", "question", q.Name.String(), "error", err)
		return reply(h, &q, dnsmessage.RCodeServerFailure, nil)
	}
	if q.Type == dnsmessage.TypeAAAA {
		return withoutAAAA(answer, h, q)
	}
	return answer
}

// local answers what the host knows without asking anybody. A name that means
// the host's own loopback means the host to a container too.
func (d *names) local(q dnsmessage.Question) (found bool, records []dnsmessage.Resource) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ttl}
	if q.Type == dnsmessage.TypePTR {
		for _, to := range d.files.namesOf(name) {
			if n, err := dnsmessage.NewName(to + "."); err == nil {
				records = append(records, dnsmessage.Resource{Header: head, Body: &dnsmessage.PTRResource{PTR: n}})
			}
		}
		return records != nil, records
	}
	var addrs []netip.Addr
	switch name {
	case "host.docker.internal":
		addrs = []netip.Addr{d.net.HostLoopback()}
	case "gateway.docker.internal":
		addrs = []netip.Addr{d.net.Gateway()}
	default:
		if addrs = d.files.addresses(name); addrs == nil {
			return false, nil
		}
	}
	if q.Type == dnsmessage.TypeA {
		for _, a := range addrs {
			if a.IsLoopback() {
				a = d.net.HostLoopback()
			}
			if a.Is4() {
				records = append(records, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
			}
		}
	}
	return true, records
}

// reply makes an answer of our own. What doesn't fit is left out: there is
// never that much.
func reply(h dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode, records []dnsmessage.Resource) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
		},
		Answers: records,
	}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// withoutAAAA takes the addresses out of an answer; aliases and errors stay.
func withoutAAAA(answer []byte, h dnsmessage.Header, q dnsmessage.Question) []byte {
	var p dnsmessage.Parser
	got, err := p.Start(answer)
	if err != nil {
		return reply(h, &q, dnsmessage.RCodeServerFailure, nil)
	}
	if got.RCode != dnsmessage.RCodeSuccess {
		return answer
	}
	var records []dnsmessage.Resource
	if p.SkipAllQuestions() == nil {
		for {
			r, err := p.Answer()
			if err != nil {
				break
			}
			if r.Header.Type == dnsmessage.TypeCNAME {
				records = append(records, r)
			}
		}
	}
	return reply(h, &q, dnsmessage.RCodeSuccess, records)
}

// forward asks the host's name servers, as often as the host does.
func (d *names) forward(query []byte, q dnsmessage.Question, transport string) ([]byte, error) {
	conf := d.files.conf()
	var errs []error
	for range conf.attempts {
		answer, err := round(conf, query, q, transport)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// round asks each server once, the next when the one before has failed or is
// silent for nextServer, and returns the first answer of one that knows
// anything; without one, what another said.
func round(conf resolvConf, query []byte, q dnsmessage.Question, transport string) ([]byte, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type result struct {
		answer []byte
		err    error
	}
	results := make(chan result, len(conf.servers)) // nobody waits for the late ones
	var errs []error
	var poor []byte
	next := 0
	for underWay := 0; next < len(conf.servers) || underWay > 0; {
		var silent <-chan time.Time
		if next < len(conf.servers) {
			server := conf.servers[next]
			next, underWay = next+1, underWay+1
			go func() {
				answer, err := exchange(ctx, server, query, q, transport, conf.timeout)
				if err != nil {
					err = fmt.Errorf("%s: %w", server, err)
				}
				results <- result{answer, err}
			}()
			if next < len(conf.servers) {
				silent = time.After(nextServer)
			}
		}
		select {
		case r := <-results:
			underWay--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
			case knows(r.answer):
				return r.answer, nil
			default:
				poor = r.answer
			}
		case <-silent:
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, errors.Join(errs...)
}

// knows says whether a server's answer is more than that it has none: with
// servers for several domains (a VPN's), another may have one.
func knows(answer []byte) bool {
	code := dnsmessage.RCode(answer[3] & 0xf)
	return code != dnsmessage.RCodeServerFailure && code != dnsmessage.RCodeRefused
}

// exchange asks one server. The query gets a number of ours, from a socket of
// its own, so that nobody can guess both.
func exchange(ctx context.Context, server netip.AddrPort, query []byte, q dnsmessage.Question, transport string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, transport, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := append([]byte(nil), query...)
	binary.BigEndian.PutUint16(ours, uint16(rand.Uint32()))
	if transport == "tcp" {
		err = writeMessage(conn, ours)
	} else {
		_, err = conn.Write(ours)
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, maxMessage)
	for {
		answer := buf
		if transport == "tcp" {
			answer, err = readMessage(conn)
		} else {
			var n int
			n, err = conn.Read(buf)
			answer = buf[:n]
		}
		if err != nil {
			return nil, err
		}
		if answers(answer, ours, q) {
			copy(answer, query[:2])
			return answer, nil
		}
	}
}

// answers says whether a message is the answer to a query.
func answers(b, query []byte, q dnsmessage.Question) bool {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(query) {
		return false
	}
	got, err := p.Question()
	if err != nil { // some servers leave it out of an error
		return h.RCode != dnsmessage.RCodeSuccess
	}
	return got.Type == q.Type && got.Class == q.Class && strings.EqualFold(got.Name.String(), q.Name.String())
}
