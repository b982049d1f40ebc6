package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sampan/cmd/sampan/e2e/oracle"
)

// Sampan does with every probe what dockerd did, but for the exceptions that are
// listed with their reasons: asked by the docker client, and by its own CLI. With
// SAMPAN_ORACLE=FILE what they show is written to FILE and FILE.sampan.
func TestOracle(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.record()
	var probes []oracle.Probe
	for _, p := range oracle.Probes() {
		if p.Nightly && !nightly() {
			continue
		}
		probes = append(probes, p)
		if p.Sampan || nightly() {
			p.Program = "sampan"
			probes = append(probes, p)
		}
	}
	r := oracle.Runner{Socket: filepath.Join(h.witnessed(), "docker.sock"), Dir: filepath.Dir(h.dir), Env: h.environ()}
	got, errs := r.RunAll(t.Context(), probes, 3)
	docker, ours, cli := oracle.Docker(), oracle.Ours(), oracle.CLI()
	all := map[string]string{}
	for i, p := range probes {
		name := strings.TrimSpace(p.Name + " " + p.Program)
		if errs[i] != nil {
			t.Errorf("%s: %v", name, errs[i])
			continue
		}
		all[p.Program] += oracle.Section(p.Name, got[i])
		want := except(t, name, docker[p.Name], ours, p.Name)
		if p.Program != "" {
			want = except(t, name, want, cli, p.Name)
		}
		// Docker begins its errors with small letters since version 23.
		if !strings.EqualFold(got[i], want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got[i], want)
		}
	}
	if file := os.Getenv("SAMPAN_ORACLE"); file != "" {
		for program, text := range all {
			if err := os.WriteFile(strings.TrimSuffix(file+"."+program, "."), []byte(text), 0o644); err != nil {
				t.Error(err)
			}
		}
	}
}

// except is the transcript that is expected of a probe, which may be an exception.
func except(t *testing.T, name, want string, list map[string]oracle.Exception, probe string) string {
	t.Helper()
	e, excepted := list[probe]
	if !excepted {
		return want
	}
	if strings.EqualFold(e.Transcript, want) {
		t.Errorf("%s: an exception that is none", name)
	}
	return e.Transcript
}
