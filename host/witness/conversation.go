package witness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
)

// maxBody is how much of a request is looked at; none is larger but archives,
// which are not looked at.
const maxBody = 8 << 20

// question is a request, as far as its answer depends on it.
type question struct {
	req     *http.Request
	version string
	op      *operation // nil: not described
	turned  chan bool  // whether the connection is no longer HTTP

	wrong    chan []string // what is wrong with the request, when it has been read
	accepted chan bool     // whether the daemon has taken it
}

func (q *question) String() string { return q.req.Method + " " + q.req.URL.RequestURI() }

// listen reads along what a connection's two ends say.
func (p *Proxy) listen(asked, answered io.Reader) {
	questions := make(chan *question, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer io.Copy(io.Discard, asked) // the copying must go on
		defer close(questions)
		in := bufio.NewReader(asked)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			q := p.question(req)
			questions <- q
			wg.Go(func() {
				// What is refused may well be wrong.
				if what := <-q.wrong; <-q.accepted {
					p.object(q, "request", what)
				}
			})
			q.wrong <- p.request(q)
			if q.mayTurn() && <-q.turned {
				return
			}
		}
	})
	wg.Go(func() {
		defer io.Copy(io.Discard, answered)
		in := bufio.NewReader(answered)
		for q := range questions {
			turned := p.answer(in, q)
			q.accepted <- false // when that is not known
			q.turned <- turned
			if turned {
				break
			}
		}
		wg.Go(func() { // of a connection that has ended
			for q := range questions {
				q.accepted <- false
				q.turned <- true
			}
		})
	})
	wg.Wait()
}

var versioned = regexp.MustCompile(`^/v(\d+\.\d+)(/.*)$`)

// linkPath is that of a link, CONTAINER/ALIAS; the description has only names
// without a slash.
var linkPath = regexp.MustCompile(`^(/containers/[^/]+)/[^/]+$`)

func (p *Proxy) question(req *http.Request) *question {
	q := &question{req: req, version: p.API.Latest, turned: make(chan bool, 1),
		wrong: make(chan []string, 1), accepted: make(chan bool, 2)}
	path := req.URL.Path
	if m := versioned.FindStringSubmatch(path); m != nil {
		q.version, path = m[1], m[2]
	}
	if req.Method == http.MethodDelete && req.URL.Query().Get("link") == "1" {
		path = linkPath.ReplaceAllString(path, "$1")
	}
	q.op = p.API.find(q.version, req.Method, path)
	return q
}

// mayTurn: the connection may become something else than HTTP.
func (q *question) mayTurn() bool {
	return q.req.Header.Get("Upgrade") != "" || q.op != nil && (q.op.ID == "ContainerAttach" || q.op.ID == "ExecStart")
}

// request reads a request to its end, and says what is wrong with it.
func (p *Proxy) request(q *question) []string {
	defer io.Copy(io.Discard, q.req.Body)
	if q.op == nil {
		return nil
	}
	what := q.op.query(q.req.URL.Query())
	if s := q.op.body; s != nil && s.described() {
		text, err := io.ReadAll(io.LimitReader(q.req.Body, maxBody))
		if err != nil {
			return nil // cut off
		}
		if len(bytes.TrimSpace(text)) > 0 {
			what = append(what, q.op.check(s, bytes.NewReader(text))...)
		} else if q.op.bodyRequired {
			what = append(what, ": missing")
		}
	}
	return what
}

func (p *Proxy) object(q *question, side string, what []string) {
	for i := range what {
		what[i] = q.op.ID + " " + side + " " + what[i]
	}
	p.find(q.version, q.String(), what)
}

// answer reads the answer to q, and reports whether what follows is not HTTP.
func (p *Proxy) answer(in *bufio.Reader, q *question) bool {
	var resp *http.Response
	for {
		var err error
		if resp, err = http.ReadResponse(in, q.req); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				p.find(q.version, q.String(), []string{"not HTTP: " + err.Error()})
			}
			return true
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	p.remember(fmt.Sprintf("%s: %d", q, resp.StatusCode))
	q.accepted <- resp.StatusCode < 400
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return true
	}
	defer io.Copy(io.Discard, resp.Body)
	kind := resp.Header.Get("Content-Type")
	switch {
	case strings.HasPrefix(q.req.URL.Path, "/sampan/"): // ours
	case resp.StatusCode >= 400:
		if q.op != nil && q.req.Method != http.MethodHead {
			p.object(q, "error", q.op.check(&failure, resp.Body))
		}
	case q.op == nil:
		p.find(q.version, q.String(), []string{q.req.Method + " " + q.req.URL.Path + ": not described"})
	default:
		s, known := q.op.answers[resp.StatusCode]
		if !known {
			p.object(q, "answer", []string{fmt.Sprintf("%d: unknown", resp.StatusCode)})
			break
		}
		if s.described() && q.req.Method != http.MethodHead && strings.HasPrefix(kind, "application/json") {
			p.object(q, "answer", q.op.check(s, resp.Body))
		} else if s.described() && q.req.Method != http.MethodHead && !strings.HasPrefix(kind, "application/") {
			p.object(q, "answer", []string{"is " + kind + ", not JSON"})
		}
	}
	return q.mayTurn() && strings.HasPrefix(kind, "application/vnd.docker.")
}

// check holds JSON values, one after the other, against a schema.
func (o *operation) check(s *schema, r io.Reader) []string {
	dec := json.NewDecoder(r)
	dec.UseNumber()
	c := &checker{api: o.doc}
	for {
		var v any
		switch err := dec.Decode(&v); {
		case err == nil:
			c.value("", v, s)
			continue
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.ErrClosedPipe):
			c.found = append(c.found, "not JSON: "+err.Error())
		}
		return c.found
	}
}
