package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/term"

	"sampan/host/engine"
)

// defaultDetachKeys leave an attached terminal: ctrl-p, ctrl-q.
var defaultDetachKeys = []byte{16, 17}

// lingering is how long a finished connection waits for the client to end its
// side; closing it earlier could lose what it has not read.
const lingering = 2 * time.Second

// framer writes output, framed unless raw.
type framer struct {
	w   io.Writer
	raw bool
	buf []byte
}

func (f *framer) write(id engine.Stream, p []byte) error {
	if f.raw {
		_, err := f.w.Write(p)
		return err
	}
	f.buf = append(f.buf[:0], byte(id), 0, 0, 0)
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(len(p)))
	f.buf = append(f.buf, p...)
	_, err := f.w.Write(f.buf)
	return err
}

// hijacked is a connection that has been taken over.
type hijacked struct {
	conn net.Conn
	in   io.Reader // with what the server had read ahead
}

// hijack takes the connection over and sends the answer's header.
func hijack(w http.ResponseWriter, r *http.Request, contentType string) (*hijacked, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	conn.SetDeadline(time.Time{})
	// Not the server's own reader: its end of file would cancel the request's
	// context, and a client that ends its stdin still wants the output.
	ahead, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, err
	}
	in := io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, err
	}
	return &hijacked{conn, in}, nil
}

// close ends our side, waits a little for the client's, and closes.
func (h *hijacked) close() {
	if cw, ok := h.conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		h.conn.SetReadDeadline(time.Now().Add(lingering))
		io.Copy(io.Discard, h.conn)
	}
	h.conn.Close()
}

// stdin reads what the client types; the detach keys, known only with a
// terminal, end it with an error.
func (h *hijacked) stdin(tty bool, keys []byte) io.Reader {
	if !tty {
		return h.in
	}
	return term.NewEscapeProxy(h.in, keys)
}

func detachKeys(what, s string) ([]byte, error) {
	if s == "" {
		return defaultDetachKeys, nil
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, invalid("Invalid %s keys (%s) provided", what, s)
	}
	return keys, nil
}

// skipBody reads a body that means nothing, lest it be taken for a process's input:
// dockerode sends its options as one, besides the query.
func skipBody(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength <= 0 {
		return nil
	}
	inTime := hurry(w)
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		return invalid("read the request's body: %v", err)
	}
	inTime()
	return nil
}

func (s *server) containerAttach(w http.ResponseWriter, r *http.Request) error {
	if err := skipBody(w, r); err != nil {
		return err
	}
	keys, err := detachKeys("detach", r.FormValue("detachKeys"))
	if err != nil {
		return err
	}
	a, err := s.Engine.Attach(r.PathValue("name"), engine.AttachOptions{
		Stdin: boolean(r, "stdin"), Stdout: boolean(r, "stdout"), Stderr: boolean(r, "stderr"),
		Stream: boolean(r, "stream"), Logs: boolean(r, "logs"),
	})
	if err != nil {
		return err
	}
	defer a.Close()
	h, err := hijack(w, r, contentType(r, a.TTY))
	if err != nil {
		return err
	}
	defer h.close()
	out := &framer{w: h.conn, raw: a.TTY}
	// The request's context may have been cancelled before the connection was
	// taken over: by the end of the client's side, which is no end of its wish.
	err = a.Copy(context.WithoutCancel(r.Context()), h.stdin(a.TTY, keys), out.write)
	return s.ended(err)
}

// ended judges the end of a hijacked connection: a client that has gone is no
// failure.
func (s *server) ended(err error) error {
	var op *net.OpError
	if err != nil && !errors.As(err, &op) {
		s.Log.Warn("attached client", "error", err)
	}
	return nil // the connection has no room for an answer
}

func (s *server) execCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if _, err := detachKeys("escape", req.DetachKeys); err != nil {
		return err
	}
	id, err := s.Engine.ExecCreate(r.PathValue("name"), req)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *server) machineExec(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	id, err := s.Engine.MachineExec(req)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *server) execStart(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	id := r.PathValue("id")
	tty, err := s.Engine.ExecCheck(id)
	if err != nil {
		return err
	}
	if req.Detach {
		return s.Engine.ExecStart(r.Context(), id, req, nil, nil)
	}
	keys, err := detachKeys("escape", s.Engine.ExecDetachKeys(id))
	if err != nil {
		return err
	}
	h, err := hijack(w, r, contentType(r, tty))
	if err != nil {
		return err
	}
	defer h.close()
	out := &framer{w: h.conn, raw: tty}
	// Without cancel as in containerAttach.
	if err := s.Engine.ExecStart(context.WithoutCancel(r.Context()), id, req, h.stdin(tty, keys), out.write); err != nil {
		// As Docker has it: the reason takes the place of the output, the code
		// is told by inspect.
		out.write(engine.Stdout, []byte(err.Error()+"\r\n"))
	}
	return nil
}

func (s *server) execResize(w http.ResponseWriter, r *http.Request) error {
	rows, columns, err := size(r)
	if err != nil {
		return err
	}
	return s.Engine.ExecResize(r.Context(), r.PathValue("id"), rows, columns)
}

func (s *server) execInspect(w http.ResponseWriter, r *http.Request) error {
	x, err := s.Engine.ExecInspect(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, x)
}
