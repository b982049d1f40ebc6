package e2e_test

import (
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"sampan/host/imagetest"
)

// nightly says that the long forms of the fault tests are wanted (make nightly).
func nightly() bool { return os.Getenv("SAMPAN_NIGHTLY") != "" }

// sampand is killed at every single change that it makes to its home while it
// pulls, creates, renames and removes, each time from an empty home on. What
// it has acknowledged is there afterwards, what was under way is there or not,
// and nothing else is.
func TestKillAtEveryChange(t *testing.T) {
	ref := faultImage(t)
	script := [][]string{
		{"pull", "-q", ref},
		{"tag", ref, "second:1"},
		{"volume", "create", "named"},
		{"create", "--name", "one", "-v", "named:/named", "-v", "/anonymous", ref, "true"},
		{"docker", "rename", "one", "two"},
		{"rm", "-v", "two"},
		{"volume", "rm", "named"},
		{"rmi", "second:1"},
		{"create", "--name", "last", ref, "true"},
		{"rmi", "-f", ref},
		{"rm", "last"}, // takes the layers with it
		{"pull", "-q", ref},
		{"rmi", ref},
	}
	next := [][]string{
		{"pull", "-q", ref},
		{"create", "--name", "next", "-v", "/anonymous", ref, "true"},
		{"rm", "-v", "next"},
	}
	faultPoints(t, script, next, 5)
}

// The same with containers that run.
func TestKillAtChangesOfRun(t *testing.T) {
	onceAsUser(t)
	ref := faultImage(t)
	script := [][]string{
		{"pull", "-q", ref},
		{"volume", "create", "named"}, // or a crash within run may leave it
		{"run", "--name", "done", "-v", "named:/named", "-v", "/anonymous", ref, "sh", "-c", "echo kept > /named/file; sync"},
		{"run", "--rm", "-v", "named:/named", ref, "cat", "/named/file"},
		{"run", "-d", "--name", "on", ref, "sleep", "1000"},
		{"rm", "-v", "-f", "on"},
		{"rm", "-v", "done"},
	}
	next := [][]string{
		{"pull", "-q", ref},
		{"run", "--rm", "-v", "named:/named", ref, "true"},
	}
	faultPoints(t, script, next, 50)
}

// faultImage is an image of two layers, one of them kept as it comes, in a
// registry of the test's own.
func faultImage(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	img := imageFromArchive(t, "busybox.tar")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	more, err := imagetest.Layer(imagetest.File{Name: "more", Data: []byte("more\n"), Mode: 0o644})
	if err == nil {
		more, err = gnuGzip(more)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	two, err := imagetest.Image(cfg.Config, append(layers[:len(layers):len(layers)], []v1.Layer{more}...)...)
	if err != nil {
		t.Fatal(err)
	}
	ref := strings.TrimPrefix(srv.URL, "http://") + "/two:1"
	if err := imagetest.Push(ref, two); err != nil {
		t.Fatal(err)
	}
	return ref
}

// faultPoints runs script once to the end, and then again and again with
// sampand killed at its first, second, … change; of these only one in every is
// taken, other ones as root than as an ordinary user, unless it is night. Each time the home's state must be that before or after the command
// that was under way, and the commands of next must work.
func faultPoints(t *testing.T, script, next [][]string, every int) {
	h := newHome(t)
	tr := h.startTrapped(t, 0)
	states := []string{h.state(t)}
	for _, args := range script {
		program, args := split(args)
		h.must(t, program, args...)
		states = append(states, h.state(t))
	}
	h.untidy(t)
	ops := tr.done()
	tr.end(t)
	t.Logf("%d changes", len(ops))
	if t.Failed() || testing.Verbose() {
		t.Log(strings.Join(ops, "\n"))
	}
	points := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := range points {
				t.Run(fmt.Sprint(n), func(t *testing.T) { faultPoint(t, script, next, states, n) })
			}
		})
	}
	first := 1
	switch {
	case nightly():
		every = 1
	case os.Geteuid() != 0:
		first += every / 2 // in the middle of a step of the other run
	}
	for n := first; n <= len(ops); n += every {
		points <- n
	}
	close(points)
	wg.Wait()
}

// split tells a command's program: sampan unless it says docker.
func split(command []string) (program string, args []string) {
	if command[0] == "docker" {
		return "docker", command[1:]
	}
	return "sampan", command
}

func faultPoint(t *testing.T, script, next [][]string, states []string, n int) {
	h := newHome(t)
	tr := h.startTrapped(t, n)
	done := 0
	for _, args := range script {
		if tr.killed() {
			break
		}
		program, args := split(args)
		if r := h.try(t, "", program, args...); r.code != 0 && !tr.killed() {
			t.Fatalf("%q failed, and nobody was killed: %+v", args, r)
		} else if r.code != 0 {
			break
		}
		done++
	}
	tr.end(t)
	at := "its end"
	if ops := tr.done(); tr.killed() {
		at = ops[n-1]
	}
	may := mayBe(script, states, done)
	state := h.state(t)
	// The new daemon removes what --rm promised while it serves already.
	for end := time.Now().Add(10 * time.Second); !slices.Contains(may, state) && time.Now().Before(end); state = h.state(t) {
		time.Sleep(50 * time.Millisecond)
	}
	if !slices.Contains(may, state) {
		t.Errorf("killed at %s with %d commands acknowledged: found\n%s\nwant one of\n%s", at, done, state, strings.Join(may, "\nor\n"))
	}
	for _, args := range next {
		h.sampan(t, args...)
	}
	h.untidy(t)
	if t.Failed() {
		t.Logf("killed at change %d, %s\n%s", n, at, tr.log.Bytes())
	}
}

// mayBe lists the states that a crash may leave when so many commands have been
// acknowledged. No container runs any more; and "run" is several steps, of which
// the first is to create.
func mayBe(script [][]string, states []string, done int) []string {
	var may []string
	for _, s := range states[done:min(done+2, len(states))] {
		may = append(may, strings.ReplaceAll(s, " running\n", " exited\n"))
	}
	if done == len(script) {
		return may
	}
	if i := slices.Index(script[done], "--name"); i > 0 && script[done][0] == "run" {
		line := regexp.MustCompile("(container " + script[done][i+1] + " .*) exited\n")
		may = append(may, line.ReplaceAllString(may[1], "$1 created\n"))
	}
	return may
}

var anonymousVolume = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// state is what the home holds: as its user sees it, and the image store's files
// with their sizes.
func (h *home) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"images", "--format", "image {{.Repository}}:{{.Tag}}"},
		{"ps", "-a", "--format", "container {{.Names}} {{.Image}} {{.State}}"},
		{"volume", "ls", "--format", "volume {{.Name}}"},
	} {
		lines := strings.Split(strings.TrimSpace(h.sampan(t, args...)), "\n")
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	found := anonymousVolume.ReplaceAllString(b.String(), "(anonymous)")
	for _, dir := range []string{"layers", "blobs"} {
		entries, err := os.ReadDir(filepath.Join(h.dir, "images", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			found += fmt.Sprintf("%s/%s %d\n", dir, e.Name(), fi.Size())
		}
	}
	return found
}

// untidy complains of what no running daemon should have left lying about.
func (h *home) untidy(t testing.TB) {
	t.Helper()
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, h.dir+"/")
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(d.Name(), "."), strings.HasPrefix(rel, "images/tmp/"), strings.HasPrefix(rel, "tmp/"):
			t.Errorf("left behind: %s", rel)
		case d.IsDir() && filepath.Dir(rel) == "containers":
			if _, err := os.Stat(filepath.Join(path, "config.json")); err != nil {
				t.Errorf("left behind: a container's folder without a record: %s", rel)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
