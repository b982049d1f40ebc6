package oracle

import (
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
