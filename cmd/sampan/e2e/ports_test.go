package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestPorts runs the program peer in a container and reaches it through
// published ports, in each way that a connection can go.
func TestPorts(t *testing.T) {
	h := newHome(t)
	h.load(t)
	run := []string{"run", "-d", "--name", "peer", "-v", filepath.Join(files.bin, "peer") + ":/peer:ro",
		"-p", "7000-7004", "-p", "7000/udp", "-p", "127.0.0.1::7005", "-l", "sampan.proxy-protocol=7005"}
	v6 := loopback6()
	if v6 {
		run = append(run, "-p", "[::1]::7005")
	}
	h.sampan(t, append(run, "busybox", "/peer")...)
	defer h.sampan(t, "rm", "-f", "peer")
	p := peer{h: h, v6: v6, at: map[string]string{}}
	for line := range strings.Lines(h.sampan(t, "port", "peer")) {
		if private, public, _ := strings.Cut(strings.TrimSpace(line), " -> "); !strings.HasPrefix(public, "[::]") {
			public = strings.Replace(public, "0.0.0.0", "127.0.0.1", 1)
			if strings.HasPrefix(public, "[") {
				private += " v6"
			}
			p.at[private] = public
		}
	}
	eventually(t, 10*time.Second, "peer is ready", func() bool { return h.sampan(t, "logs", "peer") == "ready\n" })
	t.Run("datagrams", p.datagrams)
	t.Run("outwards", p.outwards)
	t.Run("ends", p.ends)
	t.Run("proxy protocol", p.proxyProtocol)
	t.Run("bulk", p.bulk)
	t.Run("short connections", p.short)
	t.Run("idle connections", p.idle)
	t.Run("failures", p.failures)
}

// loopback6 says whether there is IPv6 here.
func loopback6() bool {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

type peer struct {
	h  *home
	v6 bool
	at map[string]string // host address by port
}

func (p peer) dial(t testing.TB, port string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.at[port])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Minute)) // a gigabyte takes its time
	return c.(*net.TCPConn)
}

func (p peer) datagrams(t *testing.T) {
	_, port, _ := strings.Cut(p.at["7000/udp"], ":")
	gateway := strings.TrimSpace(p.h.sampan(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "peer"))
	for _, at := range []string{gateway, "host.docker.internal"} {
		if got := p.h.sampan(t, "exec", "peer", "/peer", "ask", at+":"+port); got != "hello\n" {
			t.Errorf("from a container, at %s: %q", at, got)
		}
	}
	for i := range 3 { // three clients
		c, err := net.Dial("udp", p.at["7000/udp"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		for _, size := range []int{1, 0, 1400, 9000, 65507} {
			sent := bytes.Repeat([]byte{byte('a' + i)}, size)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1<<16)
			if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], sent) {
				t.Fatalf("of %d bytes %d came back, %v", size, n, err)
			}
		}
	}
}

// outwards reaches a server that listens on the host's loopback, be it ::1 alone.
func (p peer) outwards(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		if at == "[::1]:0" && !p.v6 {
			t.Log("[::1] is left out: no IPv6 here")
			continue
		}
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "at "+at)
				c.Close()
			}
		}()
		port := fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
		if got := p.h.sampan(t, "exec", "peer", "nc", "-w", "10", "host.docker.internal", port); got != "at "+at {
			t.Errorf("a server at %s says %q", at, got)
		}
	}
}

// ends checks that the end of a connection, and its reset, arrive as such on
// the other side.
func (p peer) ends(t *testing.T) {
	c := p.dial(t, "7000/tcp")
	io.WriteString(c, "half")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "half" {
		t.Errorf("half-close: %q, %v", b, err)
	}
	c = p.dial(t, "7003/tcp")
	io.WriteString(c, "x")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the container's reset: %v", err)
	}
	seen := strings.Count(p.h.sampan(t, "logs", "peer"), "\n")
	for i, want := range []string{"reset", "eof"} {
		c := p.dial(t, "7004/tcp")
		io.WriteString(c, "x")
		if want == "reset" {
			c.SetLinger(0)
		}
		c.Close()
		eventually(t, 10*time.Second, "the container tells the end", func() bool {
			return strings.Count(p.h.sampan(t, "logs", "peer"), "\n") > seen+i
		})
	}
	if log := p.h.sampan(t, "logs", "peer"); !strings.HasSuffix(log, "reset\neof\n") {
		t.Errorf("the container saw %q", log)
	}
}

func (p peer) proxyProtocol(t *testing.T) {
	for port, head := range map[string]string{
		"7005/tcp": "2111000c7f0000017f000001", "7005/tcp v6": "21210024" + strings.Repeat("0", 24),
	} {
		if strings.HasSuffix(port, " v6") && !p.v6 {
			t.Logf("%s is left out: no IPv6 here", port)
			continue
		}
		c := p.dial(t, port)
		io.WriteString(c, "x")
		c.CloseWrite()
		b, err := io.ReadAll(c)
		if want := "0d0a0d0a000d0a515549540a" + head; err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: header %s, %v; want %s…", port, b, err, want)
		}
		if port == "7005/tcp" {
			ports := binary.BigEndian.AppendUint16(nil, uint16(c.LocalAddr().(*net.TCPAddr).Port))
			if want := fmt.Sprintf("%x", ports); !strings.HasPrefix(string(b[48:]), want) {
				t.Errorf("client's port %s, want %s", b[48:], want)
			}
		}
	}
}

// bulk moves much data both ways at once, beside a reader that does not read.
func (p peer) bulk(t *testing.T) {
	size := int64(8 << 20)
	if nightly() {
		size = 1 << 30
	}
	slow := p.dial(t, "7001/tcp")
	fmt.Fprintf(slow, "%d\n", size)
	var wg sync.WaitGroup
	defer wg.Wait()
	want := sha256.New()
	io.CopyN(want, rand.NewChaCha8([32]byte{}), size)
	down, up := p.dial(t, "7001/tcp"), p.dial(t, "7002/tcp")
	wg.Go(func() {
		fmt.Fprintf(down, "%d\n", size)
		h := sha256.New()
		if n, err := io.Copy(h, down); err != nil || n != size || !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
			t.Errorf("down: %d bytes of %d, %v, or other ones", n, size, err)
		}
	})
	if _, err := io.CopyN(up, rand.NewChaCha8([32]byte{}), size); err != nil {
		t.Fatal(err)
	}
	up.CloseWrite()
	if b, err := io.ReadAll(up); err != nil || string(b) != fmt.Sprintf("%d %x\n", size, want.Sum(nil)) {
		t.Errorf("up: %q, %v", b, err)
	}
	wg.Wait()
	// The slow one is still being served.
	if n, err := io.Copy(io.Discard, slow); err != nil || n != size {
		t.Errorf("slow: %d bytes of %d, %v", n, size, err)
	}
}

func (p peer) short(t *testing.T) {
	n := 500
	if nightly() {
		n = 10_000
	}
	todo := make(chan int, n)
	for i := range n {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for i := range todo {
				if err := p.once(i); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// once is a connection for one question.
func (p peer) once(i int) error {
	c, err := net.Dial("tcp", p.at["7000/tcp"])
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	text := fmt.Sprint("question ", i)
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != text {
		return fmt.Errorf("answer %q: %w", b, err)
	}
	return nil
}

// idle connections are there when they are used again.
func (p peer) idle(t *testing.T) {
	n := 200
	if nightly() {
		n = 1000
	}
	var conns []*net.TCPConn
	for range n {
		conns = append(conns, p.dial(t, "7000/tcp"))
	}
	for range 2 {
		for i, c := range conns {
			text := fmt.Sprintf("%08d", i)
			io.WriteString(c, text)
			b := make([]byte, len(text))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
				t.Fatalf("connection %d: %q, %v", i, b, err)
			}
		}
	}
}

// What is published is shown as docker shows it, by docker too; what can't be
// is refused before anything runs.
func TestPortsShown(t *testing.T) {
	h := newHome(t)
	h.load(t)
	base := freeRange(t, 20)
	at := func(i int) string { return fmt.Sprint(base + i) }
	span := func(i, j int) string { return fmt.Sprintf("%d-%d", base+i, base+j) }
	// The host's IPv6 loopback; without one a second port of IPv4's stands for it.
	six := "[::1]"
	if !loopback6() {
		t.Log("NO IPv6 HERE: [::1] and [::] are not tested")
		six = "127.0.0.1"
	}
	h.sampan(t, "create", "--name", "web", "-p", span(0, 2)+":80-82", "-p", span(5, 9)+":90", "-p", "127.0.0.1:"+at(3)+":53/udp", "-p", six+":"+at(4)+":443", "--expose", "100", "busybox", "sleep", "1000")
	h.sampan(t, "start", "web")
	list := strings.NewReplacer("SIX", six, "B0", at(0), "B1", at(1), "B2", at(2), "B3", at(3), "B4", at(4), "B5", at(5)).Replace(`53/udp -> 127.0.0.1:B3
80/tcp -> 0.0.0.0:B0
80/tcp -> [::]:B0
81/tcp -> 0.0.0.0:B1
81/tcp -> [::]:B1
82/tcp -> 0.0.0.0:B2
82/tcp -> [::]:B2
90/tcp -> 0.0.0.0:B5
90/tcp -> [::]:B5
443/tcp -> SIX:B4
`)
	if !loopback6() {
		list = regexp.MustCompile(`(?m)^.*\[::\].*\n`).ReplaceAllString(list, "")
	}
	for _, client := range []string{"sampan", "docker"} {
		if got := h.must(t, client, "port", "web"); sorted(got) != sorted(list) {
			t.Errorf("%s port:\n%s\nwant\n%s", client, got, list)
		}
		if got, want := h.must(t, client, "port", "web", "81/tcp"), both("0.0.0.0:"+at(1)+"\n", "[::]:"+at(1)+"\n"); got != want {
			t.Errorf("%s port web 81/tcp: %q, want %q", client, got, want)
		}
		ps := h.must(t, client, "ps", "--format", "{{.Ports}}", "--no-trunc")
		for _, want := range []string{"127.0.0.1:" + at(3) + "->53/udp", "0.0.0.0:" + at(0) + "->80/tcp", both("", "[::]:"+at(5)+"->90/tcp"), six + ":" + at(4) + "->443/tcp", "100/tcp"} {
			if !strings.Contains(ps, want) {
				t.Errorf("%s ps: %s does not show %s", client, ps, want)
			}
		}
		if got, want := h.must(t, client, "inspect", "-f", `{{json (index .NetworkSettings.Ports "81/tcp")}} {{json (index .NetworkSettings.Ports "100/tcp")}} {{json (index .HostConfig.PortBindings "90/tcp")}}`, "web"),
			fmt.Sprintf(`[{"HostIp":"0.0.0.0","HostPort":"%s"}`+both("", `,{"HostIp":"::","HostPort":"`+at(1)+`"}`)+`] null [{"HostIp":"","HostPort":"%s"}]`+"\n", at(1), span(5, 9)); got != want {
			t.Errorf("%s inspect: %s, want %s", client, got, want)
		}
	}

	// A range gives the next that is free; -P any.
	h.sampan(t, "run", "-d", "--name", "next", "-p", span(5, 6)+":90", "-P", "--expose", "7/tcp", "--expose", "7/udp", "busybox", "sleep", "1000")
	ports := h.must(t, "docker", "port", "next")
	for _, want := range []string{`(?m)^90/tcp -> 0\.0\.0\.0:` + at(6) + "$", `(?m)^7/tcp -> 0\.0\.0\.0:\d+$`, `(?m)^7/udp -> ` + both(`0\.0\.0\.0`, `|\[::\]`) + `:\d+$`} {
		if !regexp.MustCompile(want).MatchString(ports) {
			t.Errorf("port next: %s does not match %s", ports, want)
		}
	}

	// Refused, with who holds it.
	busy, err := net.Listen("tcp", "127.0.0.1:"+at(15))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for port, want := range map[string]string{
		at(1):             "Bind for 0.0.0.0:" + at(1) + " failed: port is already allocated by container web",
		span(5, 6):        "Bind for 0.0.0.0:" + at(6) + " failed: port is already allocated by container next",
		at(3) + ":53/udp": "Bind for 0.0.0.0:" + at(3) + " failed: port is already allocated by container web",
		at(15):            fmt.Sprintf("failed to bind host port 0.0.0.0:%s/tcp: address already in use by process %d (", at(15), os.Getpid()),
	} {
		if !strings.Contains(port, ":") {
			port += ":80"
		}
		for _, client := range []string{"sampan", "docker"} {
			r := h.try(t, "", client, "run", "--rm", "-p", port, "busybox", "echo", "ran")
			if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, "failed to set up container networking: driver failed programming external connectivity on endpoint ") || !strings.Contains(r.stderr, want) {
				t.Errorf("%s run -p %s: %+v, want %s", client, port, r, want)
			}
		}
	}
	if os.Geteuid() != 0 {
		if r := h.try(t, "", "sampan", "run", "--rm", "-p", "999:80", "busybox", "true"); r.code != 125 || !strings.Contains(r.stderr, "only root may listen below port 1024 here: choose a higher one or run: sudo sysctl net.ipv4.ip_unprivileged_port_start=999") {
			t.Errorf("port 999: %+v", r)
		}
	}
	h.sampan(t, "rm", "-f", "web")
	h.sampan(t, "run", "--rm", "-p", at(0)+":80", "busybox", "true")
}

// both is what is told of both families; without IPv6 here, four alone.
func both(four, six string) string {
	if loopback6() {
		return four + six
	}
	return four
}

// What a container in the host's network listens on is there on the host's
// loopback, as long as it listens; what can't be is told, and there as soon as
// it can be.
func TestHostNetwork(t *testing.T) {
	h := newHome(t)
	h.load(t)
	base := freeRange(t, 3)
	busy, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+1))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	h.sampan(t, "run", "-d", "--name", "one", "--network", "host", "busybox", "httpd", "-f", "-p", fmt.Sprint(base), "-h", "/etc")
	h.must(t, "docker", "run", "-d", "--name", "two", "--network", "host", "busybox", "httpd", "-f", "-p", fmt.Sprint(base+1), "-h", "/etc")
	h.sampan(t, "run", "-d", "--name", "three", "--network", "host", "-v", filepath.Join(files.bin, "peer")+":/peer:ro", "busybox", "/peer", "udp", fmt.Sprint(base+2))
	url := func(i int) string { return fmt.Sprintf("http://127.0.0.1:%d/passwd", base+i) }
	eventually(t, 10*time.Second, "the port is there", func() bool { _, err := get(url(0)); return err == nil })
	eventually(t, 10*time.Second, "the port for datagrams is there", func() bool { return echoes(fmt.Sprintf("127.0.0.1:%d", base+2)) })
	eventually(t, 10*time.Second, "the other is told of", func() bool {
		return strings.Contains(h.sampan(t, "machine", "status"), fmt.Sprintf("port %d/tcp of the host's network is not mirrored: failed to bind host port 127.0.0.1:%d/tcp: address already in use by process", base+1, base+1))
	})
	busy.Close()
	eventually(t, 20*time.Second, "the other is there since nobody else has its port", func() bool { _, err := get(url(1)); return err == nil })
	h.sampan(t, "stop", "-t", "0", "one")
	eventually(t, 10*time.Second, "the port is gone", func() bool {
		_, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", base))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	h.sampan(t, "rm", "-f", "one", "two", "three")
	if out := h.sampan(t, "machine", "status"); strings.Contains(out, "Warning") {
		t.Errorf("after the end: %s", out)
	}
}

// echoes says whether a datagram comes back.
func echoes(at string) bool {
	c, err := net.Dial("udp", at)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 8)
	_, err = io.WriteString(c, "hello")
	if err != nil {
		return false
	}
	n, err := c.Read(b)
	return err == nil && string(b[:n]) == "hello"
}

func sorted(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// freeRange finds n ports in a row that nobody holds.
func freeRange(t testing.TB, n int) int {
	t.Helper()
next:
	for range 100 {
		base := 10000 + rand.IntN(20000)
		for i := range n {
			for _, network := range []string{"tcp", "udp"} {
				var c io.Closer
				var err error
				if network == "tcp" {
					c, err = net.Listen(network, fmt.Sprintf(":%d", base+i))
				} else {
					c, err = net.ListenPacket(network, fmt.Sprintf(":%d", base+i))
				}
				if err != nil {
					continue next
				}
				c.Close()
			}
		}
		return base
	}
	t.Fatal("no free ports in a row")
	return 0
}
