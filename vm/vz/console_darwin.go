package vz

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// console reads what the guest prints and keeps the end of it.
type console struct {
	first chan struct{} // closed at the first byte
	done  chan struct{}
	r     *os.File

	mu   sync.Mutex
	tail []byte
}

const (
	tailBytes = 8 << 10
	tailLines = 40
	// drainLimit: the framework's own process may hold the pipe a little
	// longer than the machine lives.
	drainLimit = time.Second
)

// newConsole reads r until finish, passing everything on to w if there is one.
func newConsole(r *os.File, w io.Writer) *console {
	c := &console{first: make(chan struct{}), done: make(chan struct{}), r: r}
	go c.read(w)
	return c
}

func (c *console) read(w io.Writer) {
	defer close(c.done)
	defer c.r.Close()
	var once sync.Once
	buf := make([]byte, 16<<10)
	for {
		n, err := c.r.Read(buf)
		if n > 0 {
			once.Do(func() { close(c.first) })
			c.keep(buf[:n])
			if w != nil {
				if _, err := w.Write(buf[:n]); err != nil {
					w = nil // go on reading, or the guest's output stops
				}
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *console) keep(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	c.tail = append(c.tail[:0], c.tail[max(0, len(c.tail)-tailBytes):]...)
}

// text is the tail: the guest's words without control characters.
func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && (r < 0x7f || r > 0x9f) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(c.tail), "?"))
	lines := strings.Split(strings.TrimSpace(clean), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// finish waits for the end of the guest's output, for a bounded time.
func (c *console) finish() {
	_ = c.r.SetReadDeadline(time.Now().Add(drainLimit)) // fails when read has closed it
	<-c.done
}
