package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

// fakeQMP is QEMU's side: it greets, and answers each command with what
// reply returns for its line.
func fakeQMP(t *testing.T, hello string, reply func(line string) string) net.Conn {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		fmt.Fprintln(theirs, hello)
		sc := bufio.NewScanner(theirs)
		for sc.Scan() {
			answer := reply(sc.Text())
			if answer == "EOF" {
				return
			}
			fmt.Fprintln(theirs, answer)
		}
	}()
	t.Cleanup(func() { ours.Close(); <-done })
	return ours
}

func TestMonitor(t *testing.T) {
	conn := fakeQMP(t, greeting, func(line string) string {
		id := line[strings.Index(line, `"id":`)+5 : len(line)-1]
		switch {
		case strings.Contains(line, `"qmp_capabilities"`):
			return `{"return": {}, "id": ` + id + `}`
		case strings.Contains(line, `"stop"`):
			return `{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n" +
				`{"return": {"x": 1}, "id": ` + id + `}`
		case strings.Contains(line, `"quit"`):
			return "EOF"
		}
		return `{"id": ` + id + `, "error": {"class": "CommandNotFound", "desc": "no such command"}}`
	})
	events := make(chan event, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m, v, err := newMonitor(ctx, conn, func(e event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	if v.String() != "7.2.22" || v.tooOld() {
		t.Errorf("version %s, too old %v", v, v.tooOld())
	}
	if out, err := m.execute(ctx, "stop"); err != nil || string(out) != `{"x": 1}` {
		t.Errorf("stop: %s, %v", out, err)
	}
	if e := <-events; e.Name != "SHUTDOWN" || e.Data.Reason != "guest-reset" || !e.Data.Guest {
		t.Errorf("event %+v", e)
	}
	if _, err := m.execute(ctx, "dance"); err == nil || !strings.Contains(err.Error(), "QMP dance: no such command") {
		t.Errorf("dance: %v", err)
	}
	if _, err := m.execute(ctx, "quit"); !errors.Is(err, errMonitorClosed) {
		t.Errorf("quit: %v", err)
	}
	if _, err := m.execute(ctx, "more"); !errors.Is(err, errMonitorClosed) {
		t.Errorf("after the end: %v", err)
	}
	m.close()
}

// TestMonitorDeadlines: a command's deadline is not the next one's.
func TestMonitorDeadlines(t *testing.T) {
	conn := fakeQMP(t, greeting, func(line string) string {
		return `{"return": {}, "id": ` + line[strings.Index(line, `"id":`)+5:len(line)-1] + `}`
	})
	m, _, err := newMonitor(t.Context(), conn, func(event) {})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	late, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	if _, err := m.execute(late, "stop"); err == nil {
		t.Error("no error after the deadline")
	}
	if _, err := m.execute(t.Context(), "stop"); err != nil {
		t.Errorf("without a deadline: %v", err)
	}
}

// TestMonitorSilent: whoever waits stops waiting when its context ends.
func TestMonitorSilent(t *testing.T) {
	boom := errors.New("boom")
	for _, hello := range []string{"", greeting} {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() {
			fmt.Fprintln(theirs, hello)
			bufio.NewReader(theirs).ReadString('\n')
		}()
		if hello == "" {
			hello = "{}"
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, boom)
		defer cancel()
		if _, _, err := newMonitor(ctx, ours, func(event) {}); err == nil {
			t.Errorf("greeting %q: no error", hello)
		}
	}
}

func TestMonitorGarbage(t *testing.T) {
	for _, hello := range []string{"QEMU: no such option", `{"QMP": 3}`, strings.Repeat(" ", maxLine+1)} {
		conn := fakeQMP(t, hello, func(string) string { return "EOF" })
		if _, _, err := newMonitor(t.Context(), conn, func(event) {}); err == nil {
			t.Errorf("greeting %.30q: no error", hello)
		}
	}
}

func TestVersionTooOld(t *testing.T) {
	for _, tt := range []struct {
		v   version
		old bool
	}{{version{5, 2, 0}, true}, {version{7, 1, 9}, true}, {version{7, 2, 0}, false}, {version{10, 0, 2}, false}} {
		if tt.v.tooOld() != tt.old {
			t.Errorf("%s: too old %v", tt.v, tt.v.tooOld())
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": [1], "id": 1}`))
	f.Add([]byte(`{"event": "STOP", "data": {"guest": 1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if err != nil && (m.QMP != nil || m.Name != "") {
			t.Errorf("an error and a message: %+v", m)
		}
	})
}
