package machine

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

const (
	consoleMax  = 1 << 20 // bytes of the console's log; then it starts again, keeping one older file
	consoleTail = 4 << 10 // bytes kept for error messages
)

// console writes what the guest prints to a bounded log and keeps its end.
type console struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
	tail []byte
}

func openConsole(path string) (*console, error) {
	c := &console{path: path}
	if err := c.reopen(); err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	return c, nil
}

func (c *console) reopen() error {
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil && !os.IsNotExist(err) {
		return err
	}
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	c.file, c.size = f, 0
	return nil
}

// Write never fails: a full disk must not stop the guest's console.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if n := len(c.tail) - consoleTail; n > 0 {
		c.tail = append(c.tail[:0], c.tail[n:]...)
	}
	if c.size+int64(len(p)) > consoleMax && c.file != nil {
		c.reopen()
	}
	if c.file != nil {
		n, _ := c.file.Write(p)
		c.size += int64(n)
	}
	return len(p), nil
}

// Tail is the console's last lines.
func (c *console) Tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	tail := c.tail
	if len(tail) == consoleTail { // begins within a line
		if i := bytes.IndexByte(tail, '\n'); i >= 0 {
			tail = tail[i+1:]
		}
	}
	return string(bytes.ReplaceAll(bytes.TrimSpace(tail), []byte("\r"), nil))
}

func (c *console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}
