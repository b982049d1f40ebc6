package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sampan/cmd/sampan/e2e/oracle"
)

// Sampan does with every probe what dockerd did, but for the exceptions that are
// listed with their reasons. With SAMPAN_ORACLE=FILE what Sampan does is written
// to that file.
func TestOracle(t *testing.T) {
	onceAsUser(t)
	h := newHome(t)
	h.load(t)
	h.record()
	r := oracle.Runner{Socket: filepath.Join(h.witnessed(), "docker.sock"), Dir: filepath.Dir(h.dir), Env: h.environ()}
	probes, docker, ours := oracle.Probes(), oracle.Docker(), oracle.Ours()
	known := map[string]bool{}
	for _, p := range probes {
		known[p.Name] = true
	}
	if !nightly() {
		probes = slices.DeleteFunc(probes, func(p oracle.Probe) bool { return p.Nightly })
	}
	got, err := r.RunAll(t.Context(), probes, 3)
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for i, p := range probes {
		all += oracle.Section(p.Name, got[i])
		want, recorded := docker[p.Name]
		e, excepted := ours[p.Name]
		switch {
		case !recorded:
			t.Errorf("%s: not recorded (go run ./cmd/sampan-oracle)", p.Name)
		case excepted && e.Transcript == want:
			t.Errorf("%s: an exception that is none", p.Name)
		case excepted && e.Reason == "":
			t.Errorf("%s: an exception without a reason", p.Name)
		case excepted:
			want = e.Transcript
			fallthrough
		default:
			// Docker begins its errors with small letters since version 23.
			if !strings.EqualFold(got[i], want) {
				t.Errorf("%s:\n%s\nwant:\n%s", p.Name, got[i], want)
			}
		}
	}
	for name := range ours {
		if !known[name] {
			t.Errorf("an exception for %q, which is no probe", name)
		}
	}
	if file := os.Getenv("SAMPAN_ORACLE"); file != "" {
		if err := os.WriteFile(file, []byte(all), 0o644); err != nil {
			t.Error(err)
		}
	}
}
