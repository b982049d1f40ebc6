package oracle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every exception and every answer belongs to a probe, and each probe has an answer.
func TestNames(t *testing.T) {
	known, answers := map[string]bool{}, Docker()
	for _, p := range Probes() {
		if known[p.Name] {
			t.Errorf("two probes are called %q", p.Name)
		}
		known[p.Name] = true
		if answers[p.Name] == "" {
			t.Errorf("%s: not recorded (go run ./cmd/sampan-oracle -missing)", p.Name)
		}
	}
	for name := range answers {
		if !known[name] {
			t.Errorf("an answer to %q, which is no probe", name)
		}
	}
	for _, list := range []map[string]Exception{Ours(), CLI()} {
		for name, e := range list {
			if !known[name] {
				t.Errorf("an exception for %q, which is no probe", name)
			}
			if e.Reason == "" {
				t.Errorf("%s: an exception without a reason", name)
			}
		}
	}
}

// A program takes docker's place in the commands, and its name is taken for
// docker's where it names itself, not where the daemon does.
func TestProgram(t *testing.T) {
	p := Probe{Program: "sampan"}
	got := p.command(`docker ps; until_ sh -c "docker logs x"`)
	if want := `sampan ps; until_ sh -c "sampan logs x"`; !strings.HasSuffix(got, want) || strings.Contains(got, "docker") {
		t.Errorf("got %s", got)
	}
	const in = "2| sampan: Error response from daemon: sampan: x is not supported\n2| Usage:  sampan run\n1| Run 'sampan run --help'\n"
	const want = "2| docker: Error response from daemon: sampan: x is not supported\n2| Usage:  docker run\n1| Run 'docker run --help'\n"
	if got := p.renamed(in); got != want {
		t.Errorf("got %s", got)
	}
	if got := (&Probe{}).renamed(in); got != in {
		t.Errorf("got %s", got)
	}
}

// A probe that can't be asked has an error of its own, with its name; the others
// have their transcripts, and nothing is left of either.
func TestFailingProbe(t *testing.T) {
	dir := t.TempDir()
	r := Runner{Socket: filepath.Join(dir, "nosuch.sock"), Dir: dir, Env: os.Environ()}
	got, errs := r.RunAll(t.Context(), []Probe{
		{Name: "asks", Lines: []string{"> GET /_ping"}},
		{Name: "says", Lines: []string{"$ echo said; exit 3"}},
		{Name: "means nothing", Lines: []string{"x"}},
	}, 1)
	if want := "$ echo said; exit 3\n1| said\n= 3\n"; got[1] != want || errs[1] != nil {
		t.Errorf("got %q, %v", got[1], errs[1])
	}
	for i, name := range map[int]string{0: "probe asks: ", 2: "probe means nothing: "} {
		if got[i] != "" || errs[i] == nil || !strings.HasPrefix(errs[i].Error(), name) {
			t.Errorf("got %q, %v; want an error of %q", got[i], errs[i], name)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "probe*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
