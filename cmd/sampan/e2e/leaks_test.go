package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// use is what daemon and agent hold at one time.
type use struct {
	DaemonGoroutines, DaemonFiles int
	DaemonMemory                  int // bytes, without the guest's memory, which the daemon maps
	AgentGoroutines, AgentFiles   int
	AgentMemory                   int // bytes
}

func (h *home) use(t testing.TB) use {
	t.Helper()
	var u use
	if err := json.Unmarshal([]byte(h.sampan(t, "info", "-f", `{"DaemonGoroutines":{{.NGoroutines}},"DaemonFiles":{{.NFd}}}`)), &u); err != nil {
		t.Fatal(err)
	}
	var s struct {
		Guest struct {
			AgentRSS         int `json:"agent_rss"`
			AgentGoroutines  int `json:"agent_goroutines"`
			AgentDescriptors int `json:"agent_descriptors"`
		}
	}
	if err := json.Unmarshal([]byte(h.sampan(t, "machine", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	u.AgentGoroutines, u.AgentFiles, u.AgentMemory = s.Guest.AgentGoroutines, s.Guest.AgentDescriptors, s.Guest.AgentRSS
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^Rss(Anon|File):\s+(\d+) kB$`).FindAllStringSubmatch(string(status), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		u.DaemonMemory += n << 10
	}
	if u.DaemonGoroutines == 0 || u.DaemonFiles <= 0 || u.DaemonMemory == 0 || u.AgentGoroutines == 0 || u.AgentFiles == 0 || u.AgentMemory == 0 {
		t.Fatalf("something is not told: %+v", u)
	}
	return u
}

// leaks says what has grown from before to after by more than chance: counts by
// more than 5, memory by more than a tenth.
func leaks(before, after use) []string {
	var out []string
	for _, c := range []struct {
		what          string
		before, after int
		may           int
	}{
		{"the daemon's goroutines", before.DaemonGoroutines, after.DaemonGoroutines, before.DaemonGoroutines + 5},
		{"the daemon's open files", before.DaemonFiles, after.DaemonFiles, before.DaemonFiles + 5},
		{"the daemon's memory", before.DaemonMemory, after.DaemonMemory, before.DaemonMemory / 10 * 11},
		{"the agent's goroutines", before.AgentGoroutines, after.AgentGoroutines, before.AgentGoroutines + 5},
		{"the agent's open files", before.AgentFiles, after.AgentFiles, before.AgentFiles + 5},
		{"the agent's memory", before.AgentMemory, after.AgentMemory, before.AgentMemory / 10 * 11},
	} {
		if c.after > c.may {
			out = append(out, fmt.Sprintf("%s: %d, then %d", c.what, c.before, c.after))
		}
	}
	return out
}

// Much coming and going leaves nothing behind in daemon and agent; what is held
// on purpose is noticed.
func TestLeaks(t *testing.T) {
	onceAsUser(t)
	warm, churn, rest := 10*time.Second, 10*time.Second, 3*time.Second
	if nightly() {
		warm, churn, rest = time.Minute, 5*time.Minute, 10*time.Second
	}
	h := newHome(t)
	ref := faultImage(t)
	h.sampan(t, "pull", "-q", ref)
	h.sampan(t, "run", "-d", "--name", "stays", ref, "sleep", "100000")
	h.churn(t, ref, warm) // heaps and caches come to their size
	time.Sleep(rest)
	before := h.use(t)
	rounds := h.churn(t, ref, churn)
	time.Sleep(rest)
	after := h.use(t)
	t.Logf("before, and after %d rounds in %s:\n%+v\n%+v", rounds, churn, before, after)
	for _, l := range leaks(before, after) {
		t.Error(l)
	}
	h.planted(t, after)
}

// churn does everything that comes and goes, until time is up, and tells how
// often.
func (h *home) churn(t *testing.T, ref string, limit time.Duration) int {
	t.Helper()
	rounds := 0
	for end := time.Now().Add(limit); time.Now().Before(end); rounds++ {
		h.sampan(t, "run", "--rm", "-v", "/anonymous", ref, "true")
		port := freePort(t)
		h.sampan(t, "run", "-d", "--name", "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "-v", "named:/named", ref,
			"sh", "-c", "echo begun; echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp")
		eventually(t, 20*time.Second, "the server answers", func() bool {
			body, err := get(fmt.Sprintf("http://127.0.0.1:%d/", port))
			return err == nil && body == "hello\n"
		})
		h.cutOff(t, "begun", "logs", "-f", "web")
		h.cutOff(t, "in", "exec", "web", "sh", "-c", "echo in; sleep 5")
		h.cutOff(t, "", "attach", "web")
		if got := h.sampan(t, "exec", "web", "echo", "exec"); got != "exec\n" {
			t.Errorf("exec printed %q", got)
		}
		h.sampan(t, "rm", "-f", "web")
		if r := h.try(t, "", "sampan", "run", "--rm", ref, "no-such-command"); r.code != 127 {
			t.Errorf("got %+v, want exit code 127", r)
		}
		h.networks(t, ref)
		h.sampan(t, "tag", ref, "other:1")
		h.sampan(t, "rmi", "other:1")
		h.sampan(t, "pull", "-q", ref)
		if r := h.try(t, "", "sampan", "pull", "-q", ref+"-missing"); r.code == 0 {
			t.Error("pulled what is not there")
		}
	}
	return rounds
}

// networks makes, uses and removes networks; "stays" comes and goes.
func (h *home) networks(t *testing.T, ref string) {
	t.Helper()
	h.sampan(t, "network", "create", "open")
	h.sampan(t, "network", "create", "--internal", "closed")
	h.sampan(t, "run", "-d", "--name", "peer", "--network", "open", "--network", "closed", ref, "sleep", "1000")
	h.sampan(t, "network", "connect", "open", "stays")
	h.sampan(t, "exec", "stays", "ping", "-c", "1", "-W", "10", "peer")
	h.sampan(t, "run", "--rm", "--network", "container:peer", ref, "nslookup", "-type=a", "host.docker.internal")
	h.sampan(t, "network", "disconnect", "open", "stays")
	h.sampan(t, "rm", "-f", "peer")
	h.sampan(t, "network", "rm", "open", "closed")
}

// cutOff runs a client, waits for the line that it prints first, if any, and
// kills it.
func (h *home) cutOff(t *testing.T, line string, args ...string) {
	t.Helper()
	cmd := h.command(t, "sampan", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line != "" {
		if got, err := bufio.NewReader(out).ReadString('\n'); err != nil || got != line+"\n" {
			t.Errorf("%q printed %q, %v; want %s", args, got, err, line)
		}
	} else {
		time.Sleep(100 * time.Millisecond) // it says nothing when it is there
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
}

// planted holds on to what a leak would hold on to, and wants it noticed.
func (h *home) planted(t *testing.T, before use) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	daemon := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.dir, "docker.sock"))
	}}}
	for range 8 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sampan/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := daemon.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		cmd := h.command(t, "sampan", "exec", "stays", "sh", "-c", "echo in; exec sleep 100000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for range 32 {
		defer halfSent(t, filepath.Join(h.dir, "docker.sock"), 1<<20).Close()
	}
	eventually(t, 20*time.Second, "the daemon holds what was sent by halves", func() bool { return h.use(t).DaemonMemory > before.DaemonMemory+16<<20 })
	found := strings.Join(leaks(before, h.use(t)), "\n")
	t.Logf("planted:\n%s", found)
	for _, want := range []string{"the daemon's goroutines", "the daemon's open files", "the daemon's memory", "the agent's goroutines", "the agent's open files"} {
		if !strings.Contains(found, want) {
			t.Errorf("a planted leak of %s was not noticed; found:\n%s", want, found)
		}
	}
}

// halfSent is a request to make a container whose description has begun, and has
// come to so many bytes, which the daemon keeps until it has the rest.
func halfSent(t *testing.T, socket string, size int) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = fmt.Fprintf(conn, "POST /containers/create HTTP/1.1\r\nHost: sampan\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"Image\": \"%s",
		2*size, strings.Repeat("x", size))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
