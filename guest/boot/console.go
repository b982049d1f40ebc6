package boot

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// openConsole makes /dev/console the agent's standard output and error, and
// /dev/null its input. The kernel tries the same before it starts us, but
// can't when its archive holds no /dev/console.
func openConsole() error {
	for _, o := range []struct {
		path string
		flag int
		fds  []int
	}{
		{"/dev/null", unix.O_RDONLY, []int{0}},
		{"/dev/console", unix.O_WRONLY | unix.O_NOCTTY, []int{1, 2}},
	} {
		fd, err := unix.Open(o.path, o.flag|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", o.path, err)
		}
		for _, to := range o.fds {
			if fd == to {
				continue
			}
			if err := unix.Dup3(fd, to, 0); err != nil {
				return fmt.Errorf("open %s: %w", o.path, err)
			}
		}
		if fd > 2 {
			unix.Close(fd)
		}
	}
	return nil
}

// NewLog logs to the console: a line per message, marked as the agent's,
// without a time (the kernel's lines around it have one, and the clock may be
// wrong).
func NewLog() *slog.Logger { return slog.New(&handler{w: os.Stderr, mu: new(sync.Mutex)}) }

// handler is a slog.Handler that writes "sampan-agent: message key=value".
type handler struct {
	w     io.Writer
	mu    *sync.Mutex
	attrs string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("sampan-agent: ")
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, b.String())
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	for _, a := range attrs {
		c.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &c
}

func (h *handler) WithGroup(string) slog.Handler { return h }
