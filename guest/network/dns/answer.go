package dns

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ttl is how long a client may keep an answer, in seconds, as with Docker.
	ttl = 600
	// minUDP is what a client without EDNS takes, maxUDP what we send at most.
	minUDP, maxUDP = 512, 4096
	// payload is what we take over UDP, told to clients with EDNS.
	payload = 1232
	// badVersion is the extended code for an unknown version of EDNS.
	badVersion = dnsmessage.RCode(16)
)

// Names tells who is in a container's networks.
type Names interface {
	// Lookup returns the addresses of a name in lower case without its last
	// dot, and whether anybody has it.
	Lookup(name string) (addrs []netip.Addr, known bool)
	// Reverse returns the name of an address, or "".
	Reverse(netip.Addr) string
}

// question is a message that asks something.
type question struct {
	header dnsmessage.Header
	asked  dnsmessage.Question
	edns   bool
	dnssec bool // the client takes signatures
	size   int  // of the largest answer over UDP
	rcode  dnsmessage.RCode
}

// errNoQuestion is a message that gets no answer.
var errNoQuestion = errors.New("not a question")

// parse reads a message. What is wrong with a question is in its rcode.
func parse(msg []byte) (question, error) {
	q := question{size: minUDP}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, errNoQuestion
	}
	if q.header.OpCode != 0 {
		q.rcode = dnsmessage.RCodeNotImplemented
		return q, nil
	}
	q.rcode = dnsmessage.RCodeFormatError
	list, err := p.AllQuestions()
	if err != nil || len(list) != 1 {
		return q, nil
	}
	q.asked = list[0]
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, nil
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && q.edns { // one at most
			return q, nil
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.dnssec = true, h.DNSSECAllowed()
			q.size = min(max(int(h.Class), minUDP), maxUDP)
			if version := byte(h.TTL >> 16); version != 0 {
				q.rcode = badVersion
				return q, nil
			}
		}
		if p.SkipAdditional() != nil {
			return q, nil
		}
	}
	q.rcode = dnsmessage.RCodeSuccess
	return q, nil
}

// local answers what names know, or what is wrong; ok says whether it could.
func (q *question) local(names Names) (resources []dnsmessage.Resource, ok bool) {
	if q.rcode != dnsmessage.RCodeSuccess {
		return nil, true
	}
	if q.asked.Class != dnsmessage.ClassINET {
		return nil, false
	}
	name := strings.ToLower(strings.TrimSuffix(q.asked.Name.String(), "."))
	head := dnsmessage.ResourceHeader{Name: q.asked.Name, Type: q.asked.Type, Class: dnsmessage.ClassINET, TTL: ttl}
	if q.asked.Type == dnsmessage.TypePTR {
		if addr, ok := reversed(name); ok {
			if host := names.Reverse(addr); host != "" {
				ptr, err := dnsmessage.NewName(host + ".")
				if err != nil {
					return nil, false
				}
				return []dnsmessage.Resource{{Header: head, Body: &dnsmessage.PTRResource{PTR: ptr}}}, true
			}
		}
	}
	addrs, known := names.Lookup(name)
	if !known {
		return nil, false
	}
	for _, a := range addrs {
		switch {
		case q.asked.Type == dnsmessage.TypeA && a.Is4():
			resources = append(resources, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.asked.Type == dnsmessage.TypeAAAA && a.Is6():
			resources = append(resources, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return resources, true
}

// reply makes the message for an answer of our own.
func (q *question) reply(resources []dnsmessage.Resource) ([]byte, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: q.rcode & 0xf,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	}, Answers: resources}
	if q.asked.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.asked}
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(payload, q.rcode, q.dnssec); err != nil {
			return nil, err
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	return m.Pack()
}

// fit is an answer of at most size bytes: one that is larger says that it was
// cut, and the client asks again over TCP.
func (q *question) fit(msg []byte, size int) ([]byte, error) {
	if len(msg) <= size {
		return msg, nil
	}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil, err
	}
	h.Truncated = true
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{q.asked}}
	return m.Pack()
}

// reversed reads the address that a PTR question is about.
func reversed(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(v4, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var b [4]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			b[3-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	digits := strings.Split(v6, ".")
	if !ok || len(digits) != 32 || slices.ContainsFunc(digits, func(d string) bool { return len(d) != 1 }) {
		return netip.Addr{}, false
	}
	slices.Reverse(digits)
	b, err := hex.DecodeString(strings.Join(digits, ""))
	if err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}
