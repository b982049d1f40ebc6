package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// What a client has not read goes through the file in order, and the file is
// empty when it has caught up.
func TestSpill(t *testing.T) {
	dir := t.TempDir()
	h := newHub(dir, false)
	c := h.subscribe(true, true, nil)
	var want, got bytes.Buffer
	for round := range 2 {
		for i := range 300 {
			line := []byte(strings.Repeat(fmt.Sprintf("%d-%d ", round, i), 2000)) // about 4 MB
			want.Write(line)
			h.publish(nil, Stdout, line)
		}
		if c.size > 2*maxQueue || c.spill.left() == 0 {
			t.Fatalf("%d bytes in memory, %d in the file", c.size, c.spill.left())
		}
		for got.Len() < want.Len() {
			ch, err := c.next()
			if err != nil {
				t.Fatal(err)
			}
			got.Write(ch.data)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatal("what came out is not what went in")
		}
		if fi, err := c.spill.f.Stat(); err != nil || fi.Size() != 0 {
			t.Errorf("the file has %d bytes, %v", fi.Size(), err)
		}
	}
	if files, err := os.ReadDir(dir); len(files) != 0 || err != nil {
		t.Errorf("files with names: %v, %v", files, err)
	}
	h.close()
	if _, err := c.next(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// Without a place for the file the client is waited for, and leaving frees who
// waits.
func TestSpillNowhere(t *testing.T) {
	h := newHub(filepath.Join(t.TempDir(), "gone"), false)
	slow := h.subscribe(true, true, nil)
	published := make(chan struct{})
	go func() {
		defer close(published)
		for range 40 {
			h.publish(nil, Stdout, make([]byte, 64<<10))
		}
	}()
	for range 20 { // the rest waits for us
		if _, err := slow.next(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-published:
		t.Error("nobody waited")
	case <-time.After(50 * time.Millisecond):
	}
	slow.leave()
	select {
	case <-published:
	case <-time.After(10 * time.Second):
		t.Fatal("the pump waits for a client that has left")
	}
	if _, err := slow.next(); !errors.Is(err, errLeft) {
		t.Errorf("next: %v", err)
	}
}

// What the log's writer writes, its reader reads: any bytes, cut anywhere.
func FuzzLog(f *testing.F) {
	f.Add([]byte("hello\nworld"), 3)
	f.Add([]byte("\x00\xff\u2028<&>\"\\\r\n\n\n"), 1)
	f.Add(bytes.Repeat([]byte("x"), 3*maxLogLine+1), 5000)
	f.Add(append(bytes.Repeat([]byte("x"), maxLogLine), '\n'), maxLogLine)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		path := filepath.Join(t.TempDir(), "json.log")
		w, err := openLog(path, rotation{}, discardLog())
		if err != nil {
			t.Fatal(err)
		}
		cut = max(1, cut)
		for rest := data; len(rest) > 0; {
			n := min(cut, len(rest))
			w.write(Stdout, rest[:n])
			rest = rest[n:]
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		var got []byte
		err = readAll(t, path, LogOptions{Stdout: true, Tail: -1}, nil, func(l LogEntry) error {
			if len(l.Line) > 4*maxLogLine {
				t.Errorf("an entry of %d bytes", len(l.Line))
			}
			got = append(got, l.Line...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(data)
		// Bytes that are no text can't be kept in JSON: Docker's format.
		if valid := strings.ToValidUTF8(string(want), "") == string(want); valid && len(want) < maxLogLine && string(got) != string(want) {
			t.Errorf("read %q, wrote %q", got, want)
		} else if bytes.Count(got, []byte("\n")) != bytes.Count(want, []byte("\n")) {
			t.Errorf("read %d lines, wrote %d", bytes.Count(got, []byte("\n")), bytes.Count(want, []byte("\n")))
		}
	})
}

// A line that a crash has torn costs itself, not the next one.
func TestTornLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "json.log")
	torn := `{"log":"one\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n" + `{"log":"two\n","str`
	if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := openLog(path, rotation{}, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	w.write(Stderr, []byte("three\n"))
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	var got string
	err = readAll(t, path, LogOptions{Stdout: true, Stderr: true, Tail: -1}, nil, func(l LogEntry) error {
		got += l.Stream.String() + ":" + string(l.Line)
		return nil
	})
	if want := "stdout:one\nstderr:three\n"; got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// Two streams at once, and clients that come and go.
func TestHubRace(t *testing.T) {
	h := newHub(t.TempDir(), true)
	var wg sync.WaitGroup
	for _, s := range []Stream{Stdout, Stderr} {
		wg.Go(func() {
			for range 2000 {
				h.publish(nil, s, make([]byte, 1000))
			}
		})
	}
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			c := h.subscribe(true, i%2 == 0, nil)
			defer c.leave()
			for n := 0; i%4 != 3 || n < 100; n++ {
				if _, err := c.next(); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	h.close()
	clients.Wait()
}

// readAll views a log and reads it.
func readAll(t *testing.T, path string, o LogOptions, live *logWriter, emit func(LogEntry) error) error {
	t.Helper()
	v, err := viewLog(path, live)
	if err != nil {
		return err
	}
	defer v.close()
	if !o.Follow {
		live = nil
	}
	return v.read(t.Context(), o, live, emit)
}

// A log begins a new file when one is full, and keeps as many as it may. Tails
// reach over files; who follows goes on into the next; a view of before stays
// what it was.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "json.log")
	w, err := openLog(path, rotation{size: 1000, files: 3}, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var followed []string
	done := make(chan error)
	go func() {
		done <- readAll(t, path, LogOptions{Stdout: true, Follow: true, Tail: -1}, w, func(l LogEntry) error {
			mu.Lock()
			defer mu.Unlock()
			followed = append(followed, string(l.Line))
			return nil
		})
	}()
	seen := func(n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			got := len(followed)
			mu.Unlock()
			if got == n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d lines followed, want %d", got, n)
			}
		}
	}
	var early *logView
	for n := range 100 {
		w.write(Stdout, fmt.Appendf(nil, "line %02d\n", n))
		seen(n + 1) // or the rotation is too fast for it
		if n == 4 {
			if early, err = viewLog(path, w); err != nil {
				t.Fatal(err)
			}
			defer early.close()
		}
	}
	for n, want := range []bool{true, true, true, false} {
		fi, err := os.Stat(oldLog(path, n))
		if exists := err == nil; exists != want || exists && fi.Size() > 1100 {
			t.Errorf("file %d: %v, %v", n, fi, err)
		}
	}
	read := func(tail int) (got []string) {
		t.Helper()
		err := readAll(t, path, LogOptions{Stdout: true, Tail: tail}, w, func(l LogEntry) error {
			got = append(got, string(l.Line))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	all := read(-1)
	if len(all) < 20 || len(all) > 40 || all[len(all)-1] != "line 99\n" {
		t.Errorf("%d lines, %q", len(all), all)
	}
	for _, n := range []int{0, 1, 9, 12, 17, 25, 1000} {
		want := all[max(0, len(all)-n):]
		if got := read(n); !slices.Equal(got, want) {
			t.Errorf("tail %d: %q, want %q", n, got, want)
		}
	}
	var old []string
	if err := early.read(t.Context(), LogOptions{Stdout: true, Tail: -1}, nil, func(l LogEntry) error {
		old = append(old, string(l.Line))
		return nil
	}); err != nil || len(old) != 5 || old[0] != "line 00\n" {
		t.Errorf("the early view: %q, %v", old, err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || len(followed) != 100 || followed[99] != "line 99\n" {
		t.Errorf("followed %d lines, %v", len(followed), err)
	}
}

// A reader that is too slow for the rotation loses the oldest, and goes on.
func TestSlowReaderOfRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "json.log")
	w, err := openLog(path, rotation{size: 200, files: 2}, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	w.write(Stdout, []byte("first\n"))
	var got []string
	err = readAll(t, path, LogOptions{Stdout: true, Follow: true, Tail: -1}, w, func(l LogEntry) error {
		if got = append(got, string(l.Line)); len(got) > 1 {
			return nil
		}
		for n := range 50 { // while it is slow
			w.write(Stdout, fmt.Appendf(nil, "line %02d\n", n))
		}
		return w.close()
	})
	if err != nil || len(got) < 3 || len(got) > 20 || got[0] != "first\n" || got[len(got)-1] != "line 49\n" {
		t.Errorf("%q, %v", got, err)
	}
}
