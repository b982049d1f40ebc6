package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// maxLogLine is where Docker cuts a line into partial entries, in bytes.
const maxLogLine = 16 << 10

// logWriter appends to a container's json.log: one JSON object a line,
//
//	{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}
//
// An entry without the line feed in "log" is a part of a longer line. A line
// that has not ended is held back until it does, or until the stream ends. What
// the log's options select is in "attrs", an object of strings before "time".
//
// With a limit, a file that has reached it becomes json.log.1, that one
// json.log.2 and so on; the last of rotation.files goes. A file is replaced,
// never cut: who reads it reads on.
type logWriter struct {
	log      *slog.Logger
	path     string
	rotation rotation
	attrs    []byte // of every entry, JSON; nil: none. Set before the first one

	mu       sync.Mutex
	turn     uint64 // how often the file was replaced
	f        *os.File
	size     int64
	partial  [3][]byte // by Stream
	buf      []byte
	watchers map[chan struct{}]struct{}
	failed   bool // a write has failed; said once
	closed   bool
}

func openLog(path string, rot rotation, log *slog.Logger) (*logWriter, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	w := &logWriter{log: log, path: path, rotation: rot, f: f, watchers: map[chan struct{}]struct{}{}}
	if w.size, err = mendLog(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return w, nil
}

// mendLog ends a line that a crash has torn, and tells the file's size.
func mendLog(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return size, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], size-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return size, nil
	}
	n, err := f.Write([]byte{'\n'})
	return size + int64(n), err
}

// write logs output. An error is reported once: a full disk must not end a
// container.
func (w *logWriter) write(s Stream, p []byte) {
	now := time.Now().UTC()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = w.buf[:0]
	rest := p
	for len(rest) > 0 {
		i := bytes.IndexByte(rest, '\n')
		line := rest
		if i >= 0 {
			line = rest[:i+1]
		}
		rest = rest[len(line):]
		w.addLine(s, line, now)
	}
	w.flush()
}

// addLine takes a line, or a part of one, that may continue what is held back.
func (w *logWriter) addLine(s Stream, line []byte, now time.Time) {
	held := append(w.partial[s], line...)
	for len(held) > 0 {
		n := len(held)
		ends := held[n-1] == '\n'
		switch {
		case n > maxLogLine && !(ends && n == maxLogLine+1):
			w.add(s, held[:maxLogLine], now)
			held = held[maxLogLine:]
		case ends:
			w.add(s, held, now)
			held = held[:0]
		default:
			w.partial[s] = append(w.partial[s][:0], held...)
			return
		}
	}
	w.partial[s] = w.partial[s][:0]
}

// add appends an entry to what is to be written, on a new file when it is time.
func (w *logWriter) add(s Stream, line []byte, now time.Time) {
	if w.rotation.size > 0 && w.size+int64(len(w.buf)) >= w.rotation.size {
		w.flush()
		w.buf = w.buf[:0]
		w.rotate()
	}
	w.buf = appendEntry(w.buf, s, line, w.attrs, now)
}

// rotate begins a new file. After an error the old one goes on.
func (w *logWriter) rotate() {
	if w.closed {
		return
	}
	f, err := w.rotation.next(w.path)
	if err != nil {
		w.fail(err)
		return
	}
	w.f.Close()
	w.f, w.size = f, 0
	w.turn++
}

// fail tells of the first error.
func (w *logWriter) fail(err error) {
	if !w.failed {
		w.failed = true
		w.log.Error("container log is incomplete", "file", w.path, "error", err)
	}
}

func (w *logWriter) flush() {
	if len(w.buf) == 0 || w.closed {
		return
	}
	n, err := w.f.Write(w.buf)
	w.size += int64(n)
	if err != nil {
		w.fail(err)
	}
	for c := range w.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// close logs what was held back and wakes the readers. Idempotent.
func (w *logWriter) close() error {
	now := time.Now().UTC()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.buf = w.buf[:0]
	for s, held := range w.partial {
		if len(held) > 0 {
			w.add(Stream(s), held, now) // without a line feed: there was none
		}
	}
	w.flush()
	w.closed = true
	for c := range w.watchers {
		close(c)
	}
	w.watchers = nil
	return errors.Join(w.f.Close())
}

// watch returns a channel that gets a value after writes and is closed with
// the log.
func (w *logWriter) watch() (c chan struct{}, stop func()) {
	c = make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(c)
		return c, func() {}
	}
	w.watchers[c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		delete(w.watchers, c)
		w.mu.Unlock()
	}
}

func appendEntry(b []byte, s Stream, line, attrs []byte, now time.Time) []byte {
	b = append(b, `{"log":`...)
	b = appendJSON(b, line)
	b = append(b, `,"stream":"`...)
	b = append(b, s.String()...)
	b = append(b, '"')
	if attrs != nil {
		b = append(b, `,"attrs":`...)
		b = append(b, attrs...)
	}
	b = append(b, `,"time":"`...)
	b = now.AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendJSON quotes bytes as encoding/json quotes a string: invalid UTF-8
// becomes U+FFFD.
func appendJSON(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < 0x20 || c == '<' || c == '>' || c == '&' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRune(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(b, `\ufffd`...)
			case r == '\u2028' || r == '\u2029':
				b = append(b, `\u`...)
				b = strconv.AppendInt(b, int64(r), 16)
			default:
				b = append(b, s[i:i+n]...)
			}
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}
