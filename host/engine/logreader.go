package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// LogOptions select entries of a container's log.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool
	// Tail is how many of the last entries are shown; negative: all.
	Tail int
	// Since and Until bound the time of an entry; zero: no bound.
	Since, Until time.Time
	// Begin is called before the first entry, when the log can be read. Optional.
	Begin func() error
}

// LogEntry is one line of output, or a part of a long one.
type LogEntry struct {
	Stream Stream
	Time   time.Time
	Line   []byte // with its line feed, unless it is a part
	Attrs  map[string]string
}

// Logs calls emit with the entries of a container's log, and with Follow goes
// on until the container stops or ctx ends. It never boots the machine.
func (e *Engine) Logs(ctx context.Context, name string, o LogOptions, emit func(LogEntry) error) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	driver, writer := c.rec.HostConfig.LogConfig.Type, c.log
	c.mu.Unlock()
	if driver == "none" {
		return errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	if o.Begin != nil {
		if err := o.Begin(); err != nil {
			return err
		}
	}
	if o.Follow && writer != nil {
		defer e.machine.Hold()()
	}
	return e.readLog(ctx, c.id, o, writer, emit)
}

// readLog reads a container's log, of which live is the writer while it runs,
// and goes on with what is written if o says so.
func (e *Engine) readLog(ctx context.Context, id string, o LogOptions, live *logWriter, emit func(LogEntry) error) error {
	v, err := viewLog(e.logPath(id), live)
	if err != nil {
		return err
	}
	defer v.close()
	if !o.Follow {
		live = nil
	}
	return v.read(ctx, o, live, emit)
}

// read emits what the view holds, and then follows live unless that is nil.
func (v *logView) read(ctx context.Context, o LogOptions, live *logWriter, emit func(LogEntry) error) error {
	var changed <-chan struct{}
	if live != nil {
		c, stop := live.watch() // before the first read: nothing is missed
		defer stop()
		changed = c
	}
	first, start, err := v.tail(o.Tail)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	for i := first; i < len(v.files)-1; i++ {
		if done, err := scanLog(v.files[i], start, -1, o, emit).drain(ctx); done || err != nil {
			return err
		}
		start = 0
	}
	if len(v.files) == 0 {
		return nil // never started
	}
	var until <-chan time.Time
	if live != nil && !o.Until.IsZero() {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		until = t.C
	}
	r := scanLog(v.last(), start, v.limit, o, emit)
	if live != nil {
		r = scanLog(v.last(), start, -1, o, emit)
	}
	for open := true; ; {
		if done, err := r.drain(ctx); done || err != nil {
			return err
		}
		if live != nil {
			old := v.last()
			replaced, err := v.follow(live)
			if err != nil {
				return fmt.Errorf("read log: %w", err)
			}
			if replaced { // the end of the old one, then the new one
				done, err := r.drain(ctx)
				old.Close()
				if done || err != nil {
					return err
				}
				r = scanLog(v.last(), 0, -1, o, emit)
				continue
			}
		}
		if changed == nil || !open {
			return nil
		}
		select {
		case _, open = <-changed: // once closed, what is left is read
		case <-until:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// scanLog reads a file from start up to limit, or to its end when that is
// negative.
func scanLog(f *os.File, start, limit int64, o LogOptions, emit func(LogEntry) error) *logScanner {
	length := int64(1 << 62)
	if limit >= 0 {
		length = max(0, limit-start)
	}
	return &logScanner{r: bufio.NewReaderSize(io.NewSectionReader(f, start, length), 64<<10), opts: o, emit: emit}
}

// logScanner turns the file's lines into entries.
type logScanner struct {
	r    *bufio.Reader
	opts LogOptions
	emit func(LogEntry) error
	line []byte // of which the end is not there yet
}

// drain emits what is there; done says that nothing later is wanted.
func (s *logScanner) drain(ctx context.Context) (done bool, err error) {
	for {
		part, err := s.r.ReadSlice('\n')
		s.line = append(s.line, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		entry, ok := parseEntry(s.line)
		s.line = s.line[:0]
		if !ok || !s.opts.Since.IsZero() && entry.Time.Before(s.opts.Since) {
			continue
		}
		if !s.opts.Until.IsZero() && entry.Time.After(s.opts.Until) {
			return true, nil
		}
		if entry.Stream == Stdout && !s.opts.Stdout || entry.Stream == Stderr && !s.opts.Stderr {
			continue
		}
		if err := s.emit(entry); err != nil {
			return false, err
		}
	}
}

// parseEntry reads one line of a log; a torn one is not ok.
func parseEntry(line []byte) (LogEntry, bool) {
	var v struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if json.Unmarshal(line, &v) != nil {
		return LogEntry{}, false
	}
	e := LogEntry{Stream: Stdout, Time: v.Time, Line: []byte(v.Log), Attrs: v.Attrs}
	if v.Stream == "stderr" {
		e.Stream = Stderr
	}
	return e, true
}

// tailOffset is where the last n lines before end begin, and how many of them
// are not in the file.
func tailOffset(f *os.File, end int64, n int) (at int64, missing int, err error) {
	if n <= 0 {
		return end, 0, nil
	}
	buf := make([]byte, 32<<10)
	seen := -1 // the last line's own line feed doesn't count
	for end > 0 {
		at := max(0, end-int64(len(buf)))
		b := buf[:end-at]
		if _, err := f.ReadAt(b, at); err != nil {
			return 0, 0, err
		}
		for i := bytes.LastIndexByte(b, '\n'); i >= 0; i = bytes.LastIndexByte(b[:i], '\n') {
			if seen++; seen == n {
				return at + int64(i) + 1, 0, nil
			}
		}
		end = at
	}
	return 0, n - max(seen+1, 0), nil
}
