// Package oracle asks Docker how Docker behaves. A probe is a few commands that
// the real docker client runs, or requests to the socket; its transcript is what
// came out of them, without what differs from one run to the next.
//
// transcript.txt was recorded from dockerd by the program in record, and a test
// runs the same probes against Sampan's socket. Where Sampan is meant to differ,
// or a newer Docker does from the one of Debian that was asked, ours.txt has the
// transcript that is expected instead, with the reason.
//
// probes.txt has probes one after the other:
//
//	## name               (nightly) after it: not in every run of the tests;
//	                      (sampan): Sampan's own CLI goes through it in every run,
//	                      and not by night only
//	$ COMMAND             run by sh; $P begins the names of the probe's containers
//	> METHOD PATH [JSON]  a request; the answer's status and message are shown
//
// Sampan's own CLI takes docker's place in the same commands, and is compared with
// the same transcripts, or with the exceptions in cli.txt.
//
// There are the functions "events NAME" (what has happened to a container since the
// probe's begin) and "until_ COMMAND" (repeats it until it succeeds).
package oracle

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

//go:embed probes.txt
var probes string

//go:embed transcript.txt
var transcript string

//go:embed ours.txt
var ours string

//go:embed cli.txt
var cli string

// Version of the API that everything is asked by: the oldest that both speak.
const Version = "1.41"

// timeout of a command or request.
const timeout = 60 * time.Second

// Probe is a series of commands and requests.
type Probe struct {
	Name  string
	Lines []string
	// Nightly: it takes too long for every run of the tests.
	Nightly bool
	// Sampan: its CLI has something of its own to do in it.
	Sampan bool
	// Program that takes docker's place in the commands; optional.
	Program string
}

// Probes are all there are.
func Probes() []Probe {
	var list []Probe
	for _, s := range sections(probes) {
		p := Probe{Lines: strings.Split(strings.TrimSpace(s[1]), "\n")}
		p.Name, p.Sampan = strings.CutSuffix(s[0], " (sampan)")
		p.Name, p.Nightly = strings.CutSuffix(p.Name, " (nightly)")
		list = append(list, p)
	}
	return list
}

// Docker is what dockerd did, by the probe's name.
func Docker() map[string]string {
	out := map[string]string{}
	for _, s := range sections(transcript) {
		out[s[0]] = s[1]
	}
	return out
}

// Exception is what Sampan does, and why it isn't what dockerd did.
type Exception struct{ Reason, Transcript string }

// Ours are the exceptions, by the probe's name.
func Ours() map[string]Exception { return exceptions(ours) }

// CLI are the exceptions that only Sampan's own CLI makes.
func CLI() map[string]Exception { return exceptions(cli) }

func exceptions(file string) map[string]Exception {
	out := map[string]Exception{}
	for _, s := range sections(file) {
		var e Exception
		for line := range strings.Lines(s[1]) {
			if text, ok := strings.CutPrefix(line, "# "); ok && e.Transcript == "" {
				e.Reason += text
			} else {
				e.Transcript += line
			}
		}
		out[s[0]] = e
	}
	return out
}

// Section is one probe's part of a file.
func Section(name, text string) string { return "## " + name + "\n" + text + "\n" }

// sections are the names and texts of a file's parts.
func sections(file string) [][2]string {
	var out [][2]string
	for _, part := range strings.Split("\n"+file, "\n## ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		out = append(out, [2]string{name, strings.Trim(text, "\n") + "\n"})
	}
	return out
}

// prelude are the functions of commands.
const prelude = `
events() { docker events --since "$BEGIN" --until "$(date +%s.%N)" -f "container=$1" --format '{{.Action}}{{with .Actor.Attributes.signal}} signal={{.}}{{end}}{{with .Actor.Attributes.exitCode}} exitCode={{.}}{{end}}'; }
until_() { n=0; while ! "$@" >/dev/null 2>&1; do n=$((n+1)); [ $n -gt 300 ] && return 1; sleep 0.1; done; }
`

// Runner runs probes against one socket.
type Runner struct {
	Socket string
	Dir    string   // a folder of its own for each probe is made here
	Env    []string // with the docker client in PATH
	// Done is told of every probe that has ended; optional.
	Done func(Probe, time.Duration)
}

// RunAll runs probes, so many at a time, and returns their transcripts, and the
// error of each that has none: one doesn't end the others.
func (r *Runner) RunAll(ctx context.Context, list []Probe, atOnce int) ([]string, []error) {
	out, errs := make([]string, len(list)), make([]error, len(list))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, p := range list {
		g.Go(func() error {
			began := time.Now()
			out[i], errs[i] = r.Run(ctx, p, i)
			if r.Done != nil {
				r.Done(p, time.Since(began))
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are the probes'
	return out, errs
}

// Run runs a probe, removes its containers, however it ends, and returns its
// transcript. number keeps the names of its containers apart from others'.
func (r *Runner) Run(ctx context.Context, p Probe, number int) (string, error) {
	prefix := fmt.Sprintf("p%dx", number)
	dir, err := os.MkdirTemp(r.Dir, "probe")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	env := append(append([]string{}, r.Env...),
		"DOCKER_HOST=unix://"+r.Socket, "DOCKER_API_VERSION="+Version, "DOCKER_CONFIG="+dir,
		"P="+prefix, fmt.Sprintf("BEGIN=%d.%09d", time.Now().Unix(), time.Now().Nanosecond()))
	defer r.command(context.WithoutCancel(ctx), env, dir, prelude+`docker rm -fv $(docker ps -aq -f "name=^/$P") >/dev/null 2>&1`)
	var b strings.Builder
	for _, line := range p.Lines {
		b.WriteString(line + "\n")
		text := ""
		switch {
		case strings.HasPrefix(line, "$ "):
			text = p.renamed(r.command(ctx, env, dir, p.command(line[2:])))
		case strings.HasPrefix(line, "> "):
			if text, err = r.request(ctx, strings.ReplaceAll(line[2:], "$P", prefix)); err != nil {
				return "", fmt.Errorf("probe %s: %s: %w", p.Name, line, err)
			}
		default:
			return "", fmt.Errorf("probe %s: %q is neither a command nor a request", p.Name, line)
		}
		b.WriteString(normal(text, prefix))
	}
	return b.String(), nil
}

// program finds the client's name in a command.
var program = regexp.MustCompile(`\bdocker\b`)

// command is a line's, with the functions, for the program that runs it.
func (p *Probe) command(line string) string {
	line = prelude + line
	if p.Program != "" {
		line = program.ReplaceAllString(line, p.Program)
	}
	return line
}

// renamed is what the program has put out, with docker's name where a program
// writes its own.
func (p *Probe) renamed(text string) string {
	if p.Program == "" {
		return text
	}
	own := regexp.MustCompile(`(?m)(^[12]\| |Usage:  |\t|['"\x60])` + p.Program + `( |:)`)
	return own.ReplaceAllString(text, "${1}docker${2}")
}

// command runs a line and shows what it put out and how it ended.
func (r *Runner) command(ctx context.Context, env []string, dir, line string) string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Env, cmd.Dir, cmd.WaitDelay = env, dir, time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var b strings.Builder
	for _, s := range []struct{ mark, text string }{{"1| ", out.String()}, {"2| ", errs.String()}} {
		for line := range strings.Lines(s.text) {
			b.WriteString(s.mark + strings.TrimRight(line, "\r\n") + "\n")
		}
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		b.WriteString("= timeout\n")
	case errors.As(err, &exit):
		fmt.Fprintf(&b, "= %d\n", exit.ExitCode())
	case err != nil:
		fmt.Fprintf(&b, "= %v\n", err)
	}
	return b.String()
}

// request sends "METHOD PATH [JSON]".
func (r *Runner) request(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	method, rest, _ := strings.Cut(line, " ")
	path, body, _ := strings.Cut(rest, " ")
	req, err := http.NewRequestWithContext(ctx, method, "http://docker/v"+Version+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.Socket)
	}}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	var message struct{ Message string }
	shown := strings.TrimSpace(string(text))
	if json.Unmarshal(text, &message) == nil && message.Message != "" {
		shown = message.Message
	}
	if strings.ContainsFunc(shown, func(c rune) bool { return c != '\n' && !strconv.IsPrint(c) }) {
		shown = strconv.Quote(string(text)) // a stream of frames, or a terminal's
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, shown)) + "\n", nil
}

// varying is what differs from one run to the next, or between clients.
var varying = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<ID>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<SHORT>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[-+]\d\d:\d\d)`), "<TIME>"},
	{regexp.MustCompile(`(Less than a second|About an? \w+|\d+ (second|minute|hour)s?)( ago)?`), "<AGO>"},
	{regexp.MustCompile(`(?m)^2\| (See|Run) 'docker .*\n`), ""},
	{regexp.MustCompile(`(?m)^[12]\| (WARNING: )?IPv4 forwarding is disabled.*\n`), ""}, // the recording machine's
	{regexp.MustCompile(`(?m)^2\| *\n`), ""},
	{regexp.MustCompile(`(?m)^(2\| .*?)\.$`), "$1"},
}

func normal(text, prefix string) string {
	for _, v := range varying {
		text = v.find.ReplaceAllString(text, v.put)
	}
	return strings.ReplaceAll(text, prefix, "P.")
}
