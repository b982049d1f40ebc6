package qemu

import (
	"bytes"
	"strings"
	"sync"
)

// tail keeps the end of what is written to it: at most tailBytes bytes,
// tailLines lines. Safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const (
	tailBytes = 8 << 10
	tailLines = 40
)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	p = p[max(0, n-tailBytes):]
	t.buf = append(t.buf, p...)
	t.buf = append(t.buf[:0], t.buf[max(0, len(t.buf)-tailBytes):]...)
	return n, nil
}

// String is the kept text, with plain newlines and no other control
// characters: it comes from the guest and is shown on people's terminals.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimRight(t.buf, "\r\n \t"), []byte("\n"))
	lines = lines[max(0, len(lines)-tailLines):]
	clean := make([]string, len(lines))
	for i, l := range lines {
		clean[i] = strings.Map(printable, strings.ToValidUTF8(string(l), "?"))
	}
	return strings.Join(clean, "\n")
}

func printable(r rune) rune {
	if r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) {
		return r
	}
	return -1
}
