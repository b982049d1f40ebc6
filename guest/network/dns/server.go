package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxUnderWay bounds the questions that one server has passed on, maxConns
	// its TCP connections; both are a container's.
	maxUnderWay = 256
	maxConns    = 32
	// idle is how long a TCP connection may be silent.
	idle = 10 * time.Second
	// patience is how long a name server may take: less than resolvers give us.
	patience = 4 * time.Second
)

// Config of a Server. All fields are required.
type Config struct {
	Names Names
	// Servers are the name servers for other names, as HOST:PORT, in the order
	// in which they are tried. None: other names can't be resolved now.
	Servers func() []string
	// Dial reaches a name server by "udp" or "tcp".
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Server serves one container.
type Server struct {
	cfg    Config
	udp    net.PacketConn
	tcp    net.Listener
	ctx    context.Context // of what is under way; ended by Close
	cancel context.CancelFunc
	places chan struct{} // of questions passed on

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// Serve answers on both sockets until Close, which closes them.
func Serve(cfg Config, udp net.PacketConn, tcp net.Listener) *Server {
	s := &Server{cfg: cfg, udp: udp, tcp: tcp, places: make(chan struct{}, maxUnderWay), conns: map[net.Conn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.serveUDP)
	s.wg.Go(s.serveTCP)
	return s
}

// Close ends the server, and what is under way, and waits for that. Idempotent.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func (s *Server) serveUDP() {
	buf := make([]byte, maxUDP)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			if s.ended(err) {
				return
			}
			continue // an earlier answer was refused
		}
		q, err := parse(buf[:n])
		if err != nil {
			continue
		}
		send := func(msg []byte, err error) {
			if err == nil {
				msg, err = q.fit(msg, q.size)
			}
			if err == nil {
				s.udp.WriteTo(msg, from) // who is gone needs none
			}
		}
		if resources, ok := q.local(s.cfg.Names); ok {
			send(q.reply(resources))
			continue
		}
		select {
		case s.places <- struct{}{}:
		default: // a flood: let it run dry
			continue
		}
		msg := append([]byte(nil), buf[:n]...)
		s.wg.Go(func() {
			defer func() { <-s.places }()
			send(s.forward("udp", q, msg))
		})
	}
}

// ended says whether a socket's error is its end, and not one datagram's or
// connection's.
func (s *Server) ended(err error) bool {
	return s.ctx.Err() != nil || errors.Is(err, net.ErrClosed)
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			if s.ended(err) {
				return
			}
			select { // out of descriptors, say
			case <-time.After(100 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		s.mu.Lock()
		full := len(s.conns) >= maxConns || s.ctx.Err() != nil
		if !full {
			s.conns[c] = struct{}{}
		}
		s.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		s.wg.Go(func() {
			s.serveConn(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// serveConn answers one question after the other.
func (s *Server) serveConn(c net.Conn) {
	for {
		c.SetDeadline(time.Now().Add(idle))
		msg, err := readTCP(c)
		if err != nil {
			return
		}
		q, err := parse(msg)
		if err != nil {
			return
		}
		var answer []byte
		if resources, ok := q.local(s.cfg.Names); ok {
			answer, err = q.reply(resources)
		} else {
			answer, err = s.forward("tcp", q, msg)
		}
		if err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(idle))
		if writeTCP(c, answer) != nil {
			return
		}
	}
}

func readTCP(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeTCP(w io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return fmt.Errorf("message of %d bytes", len(msg))
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// forward asks the name servers, one after the other, and returns the answer
// for the client: that of the first that knows anything, or that nobody could
// be asked (SERVFAIL).
func (s *Server) forward(network string, q question, msg []byte) ([]byte, error) {
	var last []byte
	for _, server := range s.cfg.Servers() {
		answer, err := s.ask(network, server, q, msg)
		if err != nil {
			if s.ctx.Err() != nil {
				return nil, err
			}
			continue
		}
		binary.BigEndian.PutUint16(answer, q.header.ID)
		if rcode := dnsmessage.RCode(answer[3] & 0xf); rcode != dnsmessage.RCodeServerFailure && rcode != dnsmessage.RCodeRefused {
			return answer, nil
		}
		last = answer
	}
	if last != nil {
		return last, nil
	}
	q.rcode = dnsmessage.RCodeServerFailure
	return q.reply(nil)
}

// ask asks one name server, with an ID of our own: the client's may be guessed.
func (s *Server) ask(network, server string, q question, msg []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	c, err := s.cfg.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out := append([]byte(nil), msg...)
	rand.Read(out[:2])
	if network == "tcp" {
		if err := writeTCP(c, out); err != nil {
			return nil, err
		}
		answer, err := readTCP(c)
		if err == nil && !q.answeredBy(answer, out) {
			err = errors.New("not an answer")
		}
		return answer, err
	}
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDP+1) // one that is longer is cut for the client, see fit
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(buf[:n], out) { // anything else is somebody's guess
			return buf[:n:n], nil
		}
	}
}

// answeredBy says whether a message answers what was sent: ID and question.
func (q *question) answeredBy(msg, sent []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(sent) {
		return false
	}
	list, err := p.AllQuestions()
	if err != nil {
		return false
	}
	if len(list) == 0 { // so some refuse
		return h.RCode != dnsmessage.RCodeSuccess
	}
	return len(list) == 1 && list[0].Type == q.asked.Type && list[0].Class == q.asked.Class && equalNames(list[0].Name, q.asked.Name)
}

// equalNames compares without regard to case.
func equalNames(a, b dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	for i := range a.Length {
		if lower(a.Data[i]) != lower(b.Data[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}
