package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ahead reads a stream in a goroutine of its own, some chunks ahead of its
// reader, so that the steps of a conversion run side by side.
type ahead struct {
	full  chan []byte // closed at the end, when err is set
	empty chan []byte
	err   error
	rest  []byte // of chunk, not yet read
	chunk []byte
	stop  func()
	done  chan struct{}
}

const (
	chunkSize  = 256 << 10
	chunkCount = 4
)

// newAhead starts to read r. Close must be called, after whatever makes a Read
// of r that is under way return.
func newAhead(r io.Reader) *ahead {
	stopped := make(chan struct{})
	a := &ahead{
		full:  make(chan []byte, chunkCount),
		empty: make(chan []byte, chunkCount),
		stop:  sync.OnceFunc(func() { close(stopped) }),
		done:  make(chan struct{}),
	}
	for range chunkCount {
		a.empty <- nil // allocated when first needed
	}
	go func() {
		defer close(a.done)
		defer close(a.full)
		for {
			var b []byte
			select {
			case b = <-a.empty:
			case <-stopped:
				a.err = io.ErrClosedPipe
				return
			}
			if b == nil {
				b = make([]byte, chunkSize)
			}
			n, err := 0, error(nil)
			for b = b[:chunkSize]; n < len(b) && err == nil; {
				var m int
				m, err = r.Read(b[n:])
				n += m
			}
			if n > 0 {
				a.full <- b[:n] // never blocks: there are no more chunks than room
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.chunk != nil {
			a.empty <- a.chunk[:0:cap(a.chunk)]
			a.chunk = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.chunk, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine.
func (a *ahead) Close() error {
	a.stop()
	<-a.done
	return nil
}

// Decompress is decompress, for tars that clients send.
func Decompress(r io.Reader) (io.ReadCloser, error) { return decompress(r) }

// decompress gives the contents of a stream in gzip, zstd or no compression,
// told apart by how it begins.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case isGzip(head):
		return gzip.NewReader(br)
	case isZstd(head):
		// The window is the memory that the stream asks for: that of zstd's
		// own default for decompression, and no more.
		dec, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return dec.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, errors.New("bzip2 compression is not supported")
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return nil, errors.New("xz compression is not supported")
	}
	return io.NopCloser(br), nil
}

func isGzip(head []byte) bool { return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) }

// isZstd knows frames, and skippable ones.
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) || len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// counter reports how much of a stream has been read, every now and then.
type counter struct {
	r        io.Reader
	n, told  int64
	progress func(n int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n-c.told >= 512<<10 || err == io.EOF && c.n > c.told {
		c.told = c.n
		c.progress(c.n)
	}
	return n, err
}

// withContext fails reads once ctx is done.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (c withContext) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// keyLocks is a lock per key.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the key to be free, or for ctx.
func (l *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[string]chan struct{}{}
		}
		busy, ok := l.held[key]
		if !ok {
			mine := make(chan struct{})
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// teller makes a progress function that may be nil, or not be safe to call
// from several goroutines, into one that is.
func teller(progress func(Progress)) func(Progress) {
	var mu sync.Mutex
	return func(p Progress) {
		if progress == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		progress(p)
	}
}

// readAllMax reads a small document.
func readAllMax(r io.Reader, what string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("%s of more than %d bytes", what, maxDocument)
	}
	return b, nil
}
