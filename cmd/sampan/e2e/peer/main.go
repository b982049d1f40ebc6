// Command peer is a server with a port for each way a connection can go; the
// tests run it in a container and talk to it through published ports.
//
//	7000  echoes until the client ends (TCP), each datagram (UDP)
//	7001  sends as many bytes as the client's first line says
//	7002  answers the end with what it has received: bytes and SHA-256
//	7003  resets the connection after the first byte
//	7004  prints how the connection ends: "eof" or "reset"
//	7005  sends back the first 28 bytes, in hex
//
// "peer dns" is a name server beside it, "peer dns ADDRESS" one alone: every
// name's address is 192.0.2.7, and there is more TXT than a datagram holds. "peer
// txt NAME" asks for that. "peer udp PORT" only echoes datagrams, "peer ask
// ADDRESS" sends one and prints what comes back. "peer fell PID" has the threads
// of the forwarder in another process end, by the descriptor that tells them to.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "dns":
		go dns(dnsAt)
	case len(os.Args) == 3 && os.Args[1] == "dns":
		dns(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "txt":
		txt(os.Args[2])
		return
	case len(os.Args) == 3 && os.Args[1] == "udp":
		datagrams(":" + os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "ask":
		ask(os.Args[2])
		return
	case len(os.Args) == 3 && os.Args[1] == "fell":
		if err := fell(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for port, serve := range map[int]func(*net.TCPConn){
		7000: echo, 7001: source, 7002: sink, 7003: reset, 7004: end, 7005: head,
	} {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go accept(ln, serve)
	}
	datagrams(":7000")
}

// fell writes to each eventfd of a process. Go's own poller has one, too, and
// takes no harm.
func fell(pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	handle, err := unix.PidfdOpen(n, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", n, err)
	}
	list, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		return err
	}
	found := false
	for _, e := range list {
		if to, _ := os.Readlink("/proc/" + pid + "/fd/" + e.Name()); to != "anon_inode:[eventfd]" {
			continue
		}
		there, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(handle, there, 0)
		if err != nil {
			return fmt.Errorf("descriptor %d of process %d: %w", there, n, err)
		}
		if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return fmt.Errorf("descriptor %d of process %d: %w", there, n, err)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("process %d has no eventfd", n)
	}
	return nil
}

func ask(at string) {
	c, err := net.Dial("udp", at)
	if err == nil {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = io.WriteString(c, "hello")
	}
	b := make([]byte, 16)
	n := 0
	if err == nil {
		n, err = c.Read(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(b[:n]))
}

// datagrams echoes them until the program ends.
func datagrams(at string) {
	udp, err := net.ListenPacket("udp", at)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	buf := make([]byte, 1<<16)
	for {
		n, from, err := udp.ReadFrom(buf)
		if err == nil {
			udp.WriteTo(buf[:n], from)
		}
	}
}

func accept(ln net.Listener, serve func(*net.TCPConn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Println("accept:", err)
			continue
		}
		go func() {
			defer c.Close()
			serve(c.(*net.TCPConn))
		}()
	}
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// source's bytes are those of a generator with a fixed seed.
func source(c *net.TCPConn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return
	}
	io.CopyN(c, rand.NewChaCha8([32]byte{}), n)
}

func sink(c *net.TCPConn) {
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err == nil {
		fmt.Fprintf(c, "%d %x\n", n, h.Sum(nil))
	}
}

func reset(c *net.TCPConn) {
	c.Read(make([]byte, 1))
	c.SetLinger(0)
}

func end(c *net.TCPConn) {
	_, err := io.Copy(io.Discard, c)
	switch {
	case err == nil:
		fmt.Println("eof")
	case errors.Is(err, syscall.ECONNRESET):
		fmt.Println("reset")
	default:
		fmt.Println(err)
	}
}

func head(c *net.TCPConn) {
	b := make([]byte, 28)
	n, _ := io.ReadAtLeast(c, b, 1)
	fmt.Fprintf(c, "%x", b[:n])
	c.CloseWrite()
	io.Copy(io.Discard, c)
}
