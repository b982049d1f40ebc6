package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// patience with one answer.
const patience = 10 * time.Second

// ask puts a question to a server over and over, each when the one before is
// answered, and prints the milliseconds of one. Whoever echoes datagrams will do
// for a server, too: answers are told by their numbers.
func ask(name, server, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	if server == "" {
		if server, err = ownServer(); err != nil {
			return err
		}
	}
	dnsName, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsName, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	query, err := m.Pack()
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make([]byte, 1<<16)
	one := func(id uint16) error {
		binary.BigEndian.PutUint16(query, id)
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(query); err != nil {
			return err
		}
		k, err := conn.Read(answer)
		if err != nil {
			return err
		}
		if k < len(query) || binary.BigEndian.Uint16(answer) != id {
			return errors.New("not the answer to this question")
		}
		return m.Unpack(answer[:k])
	}
	if err := one(0); err != nil { // does not count
		return err
	}
	if m.Response && len(m.Answers) == 0 {
		return fmt.Errorf("%s is not known: %v", name, m.RCode)
	}
	began := time.Now()
	for i := range n {
		if err := one(uint16(i + 1)); err != nil {
			return err
		}
	}
	fmt.Println(time.Since(began).Seconds() * 1000 / float64(n))
	return nil
}

// ownServer is the container's name server.
func ownServer() (string, error) {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 2 && fields[0] == "nameserver" {
			return net.JoinHostPort(fields[1], "53"), nil
		}
	}
	return "", errors.New("no name server in /etc/resolv.conf")
}

// datagrams sends back each datagram.
func datagrams(pc net.PacketConn) {
	for b := make([]byte, 1<<16); ; {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		pc.WriteTo(b[:n], from)
	}
}
