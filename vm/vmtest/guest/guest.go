// Package guest is the other side of the conformance suite of vm/vmtest: what
// runs in the machine under test. It is the same in a real guest (vm/vmtest/peer
// boots as /init) and in a machine made of goroutines (vm/fake).
//
// When it is ready it dials ReadyPort of the host and closes the connection.
// Then each connection to CommandPort carries one command, a line, and what
// belongs to it:
//
//	echo            sends back what it gets until that ends, then ends
//	sink            reads to the end, answers "COUNT SHA256\n"
//	source N SEED   sends N bytes of Random(SEED)
//	drain           reads to the end, answers "COUNT\n"
//	zeros N         sends N bytes, of no interest: drain and zeros cost a guest
//	                no more than the connection does
//	relay PORT      dials PORT of the host and copies between the two
//	dial PORT       dials PORT of the host, answers "ok\n" or the error
//	hold            reads to the end and says nothing
//	poweroff, reset, crash
//	                end the machine
//
// A connection to ClosePort is closed at once, one to MutePort never read.
package guest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Ports of the guest, and the host's for the ready call.
const (
	CommandPort = 1000
	ClosePort   = 1001
	MutePort    = 1002
	ReadyPort   = 1003
)

// Env is how the guest reaches its host.
type Env struct {
	Listen func(port uint32) (net.Listener, error)
	Dial   func(port uint32) (net.Conn, error)
}

// What Serve returns when it was told to end the machine.
var (
	ErrPowerOff = errors.New("power off")
	ErrReset    = errors.New("reset")
	ErrCrash    = errors.New("crash")
)

// Conn is a connection with its two directions.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Serve answers commands until one ends the machine (an error above), ctx ends
// or the ports fail.
func Serve(ctx context.Context, env Env) error {
	ctx, end := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	s := &server{env: env, end: end}
	for port, handle := range map[uint32]func(Conn){
		CommandPort: s.command,
		ClosePort:   func(c Conn) { c.Close() },
		MutePort:    func(Conn) { <-ctx.Done() },
	} {
		l, err := env.Listen(port)
		if err != nil {
			end(err)
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		context.AfterFunc(ctx, func() { l.Close() })
		all.Go(func() { s.accept(ctx, l, &all, handle) })
	}
	if err := s.ready(ctx); err != nil {
		end(err)
		return err
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

type server struct {
	env Env
	end context.CancelCauseFunc
}

// ready tells the host. A host that does not listen yet refuses.
func (s *server) ready(ctx context.Context) error {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		c, err := s.env.Dial(ReadyPort)
		if err == nil {
			return c.Close()
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("dial the host: %w", err)
		}
	}
}

func (s *server) accept(ctx context.Context, l net.Listener, all *sync.WaitGroup, handle func(Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			s.end(err)
			return
		}
		all.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			handle(c.(Conn))
		})
	}
}

func (s *server) command(c Conn) {
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "echo":
		_, _ = io.Copy(c, r)
		_ = c.CloseWrite()
	case "sink":
		sum := sha256.New()
		n, _ := io.Copy(sum, r)
		fmt.Fprintf(c, "%d %x\n", n, sum.Sum(nil))
	case "source":
		var n int64
		var seed uint64
		fmt.Sscan(arg, &n, &seed)
		_, _ = io.Copy(c, io.LimitReader(Random(seed), n))
	case "drain":
		n, _ := io.CopyBuffer(discard{}, r, make([]byte, chunk))
		fmt.Fprintln(c, n)
	case "zeros":
		n, _ := strconv.Atoi(arg)
		zeros := make([]byte, chunk)
		for ; n > 0; n -= len(zeros) {
			zeros = zeros[:min(n, chunk)]
			if _, err := c.Write(zeros); err != nil {
				return
			}
		}
	case "hold":
		_, _ = io.Copy(io.Discard, r)
	case "relay", "dial":
		port, _ := strconv.ParseUint(arg, 10, 32)
		s.dial(verb, uint32(port), c, r)
	case "poweroff":
		s.end(ErrPowerOff)
	case "reset":
		s.end(ErrReset)
	case "crash":
		s.end(ErrCrash)
	default:
		fmt.Fprintf(c, "unknown command %q\n", verb)
	}
}

// chunk is what drain reads, and zeros writes, at once.
const chunk = 256 << 10

// discard is io.Discard without its own, small, buffers.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (s *server) dial(verb string, port uint32, c Conn, r io.Reader) {
	d, err := s.env.Dial(port)
	switch {
	case verb == "dial" && err != nil:
		fmt.Fprintln(c, err)
	case verb == "dial":
		d.Close()
		fmt.Fprintln(c, "ok")
	case err == nil:
		relay(c, r, d.(Conn))
	}
}

// relay copies between a (read through r) and b until both directions have
// ended, or one of them has failed.
func relay(a Conn, r io.Reader, b Conn) {
	defer b.Close()
	copyTo := func(dst Conn, src io.Reader) {
		if _, err := io.Copy(dst, src); err != nil {
			a.Close()
			b.Close()
		}
		_ = dst.CloseWrite()
	}
	var back sync.WaitGroup
	back.Go(func() { copyTo(a, b) })
	copyTo(b, r)
	back.Wait()
}

// Random is a stream that both sides can make.
func Random(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}
