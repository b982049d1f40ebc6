package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	dnsAt = "127.0.0.53:53"
	// datagram is what an answer without EDNS may have.
	datagram = 512
)

// dns serves names until the program ends.
func dns(at string) {
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go accept(ln, func(c *net.TCPConn) {
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		b = answer(b, 1<<16-1)
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	})
	for buf := make([]byte, 1<<16); ; {
		if n, from, err := pc.ReadFrom(buf); err == nil {
			pc.WriteTo(answer(buf[:n], datagram), from)
		}
	}
}

// answer makes the answer to a query; what has no room is truncated.
func answer(query []byte, room int) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	switch q.Type {
	case dnsmessage.TypeA:
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}}})
	case dnsmessage.TypeAAAA:
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 7}}})
	case dnsmessage.TypeTXT:
		for range 20 {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 250)}}})
		}
	}
	b, err := m.Pack()
	if err == nil && len(b) > room {
		m.Answers, m.Truncated = nil, true
		b, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return b
}

// txt prints how much TXT there is.
func txt(name string) {
	list, err := net.LookupTXT(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(len(strings.Join(list, "")))
}
