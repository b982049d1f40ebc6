package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"sampan/host/imagetest"
)

// postgresUser is who the database runs as: not root, on whom it insists.
const postgresUser = "postgres:x:70:70::/tmp:/bin/sh\n"

// unused is three quarters of the applications' root: what compiles queries, Perl,
// texts.
var unused = []string{
	"usr/lib/*/libLLVM*", "usr/lib/*/libz3*", "usr/lib/postgresql/*/lib/bitcode", "usr/lib/postgresql/*/lib/llvmjit*",
	"usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/share/perl*", "usr/lib/*/gconv",
	"usr/share/locale", "usr/share/i18n", "usr/share/doc", "usr/share/man",
}

// makeApps packs a Debian root with redis, postgresql and dig.
func makeApps(root, archive string) error {
	bins, err := filepath.Glob(filepath.Join(root, "usr/lib/postgresql/*/bin"))
	if err != nil || len(bins) != 1 {
		return fmt.Errorf("no root with applications: run `make test`, which makes it (%v, %w)", bins, err)
	}
	bin, err := filepath.Rel(root, bins[0])
	if err != nil {
		return err
	}
	base, err := imagetest.TreeLayer(root, unused...)
	if err != nil {
		return err
	}
	users, err := os.ReadFile(filepath.Join(root, "usr/share/base-passwd/passwd.master"))
	if err != nil {
		return err
	}
	own, err := imagetest.Layer(imagetest.File{Name: "etc/passwd", Data: append(users, postgresUser...)})
	if err != nil {
		return err
	}
	img, err := imagetest.Image(v1.Config{Env: []string{"PATH=/" + bin + ":/usr/bin:/bin", "LC_ALL=C"}}, base, own)
	if err != nil {
		return err
	}
	return imagetest.Archive(archive, "apps:latest", img)
}

// Real servers are used through published ports and found by name, and an
// application in one network doesn't see that of another.
func TestApplications(t *testing.T) {
	onceAsUser(t)
	requests, transactions := "1000", 10
	if nightly() {
		requests, transactions = "20000", 250
	}
	h := newHome(t)
	h.sampan(t, "load", "-q", "-i", filepath.Join(files.dir, "images", "apps.tar"))
	redis, postgres := fmt.Sprint(freePort(t)), fmt.Sprint(freePort(t))
	h.sampan(t, "network", "create", "front")
	h.sampan(t, "network", "create", "back")
	h.sampan(t, "run", "-d", "--name", "cache", "--network", "front", "-p", redis+":6379", "apps", "redis-server", "--protected-mode", "no", "--save", "")
	h.sampan(t, "run", "-d", "--name", "db", "--network", "back", "-p", postgres+":5432", "-u", "postgres", "apps", "sh", "-ec",
		`initdb -D /tmp/db --no-sync -A trust -U postgres >/dev/null
		echo "host all all all trust" >> /tmp/db/pg_hba.conf
		exec postgres -D /tmp/db -c listen_addresses='*' -c unix_socket_directories=/tmp`)
	eventually(t, 30*time.Second, "redis answers on the host", func() bool { return pong("127.0.0.1:" + redis) })
	t.Run("dig", h.dig)

	eventually(t, 5*time.Minute, "postgresql answers on the host", func() bool { return plain("127.0.0.1:" + postgres) })
	out := h.sampan(t, "run", "--rm", "--network", "back", "apps", "redis-benchmark", "-h", "host.docker.internal", "-p", redis, "-n", requests, "-c", "10", "-t", "set,get", "-q")
	if n := len(regexp.MustCompile(`(?m)(SET|GET): [0-9.]+ requests per second`).FindAllString(out, -1)); n != 2 {
		t.Errorf("redis-benchmark: %q", out)
	}
	t.Logf("redis-benchmark: %q", out[strings.LastIndex(strings.TrimSpace(out), "\r")+1:])
	out = h.sampan(t, "run", "--rm", "--network", "front", "apps", "sh", "-ec",
		"export PGHOST=host.docker.internal PGPORT="+postgres+" PGUSER=postgres; pgbench -i -q -n postgres 2>&1; pgbench -n -c 4 -t "+fmt.Sprint(transactions)+" postgres 2>&1")
	if !strings.Contains(out, fmt.Sprintf("number of transactions actually processed: %[1]d/%[1]d", 4*transactions)) || !strings.Contains(out, "number of failed transactions: 0 ") {
		t.Errorf("pgbench: %s", out)
	}
	t.Log(out)

	// Who is in the same network finds it, who is in the other does not: neither
	// by its name nor by its address.
	ip := strings.TrimSpace(h.sampan(t, "inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "db"))
	for _, at := range []string{"db", ip} {
		h.sampan(t, "run", "--rm", "--network", "back", "apps", "pg_isready", "-q", "-h", at)
		if r := h.try(t, "", "sampan", "exec", "cache", "pg_isready", "-q", "-t", "2", "-h", at); r.code != 2 {
			t.Errorf("%s from another network: %+v", at, r)
		}
	}
}

// pong says whether a redis answers.
func pong(at string) bool { return says(at, "PING\r\n", "+PONG\r\n") }

// plain says whether a postgresql answers, which is that it has no TLS
// (SSLRequest, in its manual's chapter on the protocol).
func plain(at string) bool { return says(at, "\x00\x00\x00\x08\x04\xd2\x16\x2f", "N") }

// says asks a server, and compares what it answers.
func says(at, question, answer string) bool {
	c, err := net.Dial("tcp", at)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, question)
	b := make([]byte, len(answer))
	_, err = io.ReadFull(c, b)
	return err == nil && string(b) == answer
}

// dig asks the name server of a network in each way that it has: with few
// processes, as the start of one costs more than its questions.
func (h *home) dig(t *testing.T) {
	ip := strings.TrimSpace(h.sampan(t, "inspect", "-f", "{{.NetworkSettings.Networks.front.IPAddress}}", "cache"))
	ask := func(questions string) string {
		return h.sampan(t, append([]string{"exec", "cache", "dig"}, strings.Fields(questions)...)...)
	}
	got := ask("+short cache +short cache.front +short +tcp cache +short AAAA cache +short MX cache +short host.docker.internal")
	// The uplink's part of the last one depends on the host's routes.
	want := regexp.QuoteMeta(strings.Repeat(ip+"\n", 3)) + `\d+\.\d+\.\d+\.254\n`
	if !regexp.MustCompile("^" + want + "$").MatchString(got) {
		t.Errorf("answers %q, want %q", got, want)
	}
	if got := ask("+short -x " + ip); got != "cache.front.\n" {
		t.Errorf("the name of %s: %q", ip, got)
	}
	got = ask("+nosearch AAAA cache. +nosearch +bufsize=1232 A cache.")
	if strings.Count(got, "status: NOERROR") != 2 || !strings.Contains(got, "EDNS: version: 0") {
		t.Errorf("AAAA, and EDNS: %s", got)
	}
	// Of another network: whatever the host's servers say.
	if r := h.try(t, "", "sampan", "exec", "cache", "dig", "db"); strings.Contains(r.stdout, "\tA\t") {
		t.Errorf("a name of another network: %+v", r)
	}
}

// composeFile is two services, of which one asks the other, and a third in the
// namespaces of the first.
const composeFile = `
services:
  web:
    image: busybox
    command: httpd -f -p 80 -h /etc
    ports: ["127.0.0.1:${PORT}:80"]
    ipc: shareable
  client:
    image: busybox
    depends_on: [web]
    command: sleep 1000
    networks: [default, other]
    links: ["web:site"]
  peer:
    image: busybox
    command: sleep 1000
    pid: service:web
    ipc: service:web
networks:
  other: {}
`

// The services of a Compose file find each other by name, and share namespaces.
func TestCompose(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	port := fmt.Sprint(freePort(t))
	h.env = append(h.env, "PORT="+port)
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte(composeFile), 0o644); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) string {
		t.Helper()
		return h.must(t, filepath.Join(files.bin, "docker-compose"), append([]string{"-p", "pair", "-f", file}, args...)...)
	}
	compose("up", "-d")
	eventually(t, 20*time.Second, "the service is there on the host", func() bool { _, err := get("http://127.0.0.1:" + port + "/passwd"); return err == nil })
	if out := compose("exec", "-T", "client", "wget", "-qO-", "http://web/passwd", "http://site/passwd"); strings.Count(out, "root:x:") != 2 {
		t.Errorf("from service to service: %q", out)
	}
	if out := compose("ps", "--format", "{{.Service}} {{.State}}"); sorted(out) != "client running\npeer running\nweb running" {
		t.Errorf("ps: %q", out)
	}
	compose("exec", "-T", "web", "touch", "/dev/shm/note", "/dev/mqueue/queue")
	if out := compose("exec", "-T", "peer", "sh", "-c", "ls /dev/shm /dev/mqueue; tr '\\0' ' ' </proc/1/cmdline"); out != "/dev/mqueue:\nqueue\n\n/dev/shm:\nnote\nhttpd -f -p 80 -h /etc " {
		t.Errorf("in another service's namespaces: %q", out)
	}
	compose("down", "-t", "0")
	if out := h.sampan(t, "network", "ls", "-q", "-f", "type=custom"); out != "" {
		t.Errorf("left after down: %s", out)
	}
}

// Networks, containers and connections that come and go leave nothing behind.
func TestNetworkLeaks(t *testing.T) {
	if !nightly() {
		skip(t, "`make nightly` runs it, for 6 minutes; TestLeaks has some of it")
	}
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.sampan(t, "run", "-d", "--name", "stays", "busybox", "sleep", "100000")
	churn := func(limit time.Duration) (rounds int) {
		for end := time.Now().Add(limit); time.Now().Before(end) && !t.Failed(); rounds++ {
			h.networks(t, "busybox")
			h.connections(t)
		}
		return rounds
	}
	churn(time.Minute) // heaps and caches come to their size
	time.Sleep(10 * time.Second)
	before := h.use(t)
	rounds := churn(5 * time.Minute)
	time.Sleep(10 * time.Second)
	after := h.use(t)
	t.Logf("before, and after %d rounds:\n%+v\n%+v", rounds, before, after)
	for _, l := range leaks(before, after) {
		t.Error(l)
	}
}

// connections are made in every way to a container in a network of its own and
// one in the host's, of which some are never ended.
func (h *home) connections(t *testing.T) {
	t.Helper()
	base := freeRange(t, 3)
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", base+i) }
	peer := filepath.Join(files.bin, "peer") + ":/peer:ro"
	h.sampan(t, "network", "create", "brief")
	h.sampan(t, "run", "-d", "--name", "server", "--network", "brief", "-v", peer, "-p", fmt.Sprintf("%d:7000", base), "-p", fmt.Sprintf("%d:7000/udp", base+1), "busybox", "/peer")
	h.sampan(t, "run", "-d", "--name", "mirrored", "--network", "host", "-v", peer, "busybox", "/peer", "udp", fmt.Sprint(base+2))
	eventually(t, 20*time.Second, "the server is ready", func() bool { return h.sampan(t, "logs", "server") == "ready\n" })
	var held []net.Conn
	for i := range 60 {
		c, err := net.Dial("tcp", at(0))
		if err != nil {
			t.Error(err)
			return
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 5)
		_, err = fmt.Fprint(c, "hello")
		if err == nil {
			_, err = c.Read(b)
		}
		if err != nil || string(b) != "hello" {
			t.Error(errors.Join(err, fmt.Errorf("connection %d: %q", i, b)))
		}
		switch i % 3 {
		case 0:
			c.Close()
		case 1:
			c.(*net.TCPConn).SetLinger(0) // a reset
			c.Close()
		case 2:
			held = append(held, c)
		}
	}
	for range 20 {
		if !echoes(at(1)) {
			t.Error("a datagram doesn't come back")
		}
	}
	eventually(t, 10*time.Second, "a mirrored port is there", func() bool { return echoes(at(2)) })
	gateway := strings.TrimSpace(h.sampan(t, "inspect", "-f", "{{.NetworkSettings.Networks.brief.Gateway}}", "server"))
	for _, to := range []string{gateway, "host.docker.internal"} {
		h.sampan(t, "exec", "stays", "sh", "-c", fmt.Sprintf("test $(echo hello | nc -w 10 %s %d) = hello", to, base))
	}
	h.sampan(t, "rm", "-f", "server", "mirrored")
	h.sampan(t, "network", "rm", "brief")
	for _, c := range held {
		c.Close()
	}
}
