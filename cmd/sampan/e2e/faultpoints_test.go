package e2e_test

import (
	"crypto/sha256"
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
	faultPoints(t, script, next, 5, func(*testing.T, *home, int) {})
}

// The same with containers that run.
func TestKillAtChangesOfRun(t *testing.T) {
	onceAsUser(t)
	ref := faultImage(t)
	script := [][]string{
		{"pull", "-q", ref},
		{"volume", "create", "named"}, // or a crash within run may leave it
		{"run", "--name", "done", "-v", "named:/named", "-v", "/anonymous", ref, "sh", "-c", replaceFile("/named/file", "kept") + replaceFile("/mine", "kept")},
		{"run", "--rm", "-v", "named:/named", ref, "sh", "-c", replaceFile("/named/file", "again")},
		{"run", "-d", "--name", "on", ref, "sleep", "1000"},
		{"rm", "-v", "-f", "on"},
		{"rm", "-v", "done"},
	}
	faultPoints(t, script, [][]string{{"pull", "-q", ref}}, 50, func(t *testing.T, h *home, done int) {
		may := [][]string{0: {""}, 1: {""}, 2: {"", "kept\n"}, 3: {"kept\n", "again\n"}, 4: {"again\n"}}[min(done, 4)]
		got := h.sampan(t, "run", "--rm", "-v", "named:/named", ref, "sh", "-c", "[ ! -e /named/file ] || cat /named/file")
		if !slices.Contains(may, got) {
			t.Errorf("%d commands were acknowledged, and the volume's file has %q, want one of %q", done, got, may)
		}
		if !strings.Contains(h.sampan(t, "ps", "-a", "--format", "{{.Names}}"), "done\n") {
			return // whether it may be gone, its state has told
		}
		file := filepath.Join(t.TempDir(), "mine")
		r := h.try(t, "", "sampan", "cp", "done:/mine", file)
		b, err := os.ReadFile(file)
		if whole := err == nil && string(b) == "kept\n"; !whole && (done > 2 || r.code == 0) {
			t.Errorf("%d commands were acknowledged, and the container's own file has %q, %v: %+v", done, b, err, r)
		}
	})
}

// replaceFile is a command of a shell after which a file has a new line, whole and
// safe, and before which it has the old one.
func replaceFile(path, line string) string {
	return fmt.Sprintf("echo %s > %[2]s.new; sync; mv %[2]s.new %[2]s; sync; ", line, path)
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
// taken, other ones as root than as an ordinary user, unless it is night. Each
// time the home's state must be that before or after the command that was under
// way, the image be what was pulled to the last byte, the commands of next must
// work, and check be content with what is there when so many commands of the
// script were acknowledged.
func faultPoints(t *testing.T, script, next [][]string, every int, check func(t *testing.T, h *home, done int)) {
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
	image := h.pulledAndSaved(t, next[0])
	t.Logf("%d changes", len(ops))
	if t.Failed() || testing.Verbose() {
		t.Log(strings.Join(ops, "\n"))
	}
	points := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := range points {
				t.Run(fmt.Sprint(n), func(t *testing.T) { faultPoint(t, script, next, states, image, n, check) })
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

func faultPoint(t *testing.T, script, next [][]string, states []string, image string, n int, check func(t *testing.T, h *home, done int)) {
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
	saved := h.saved(t, state)
	if saved == "" {
		saved = h.pulledAndSaved(t, next[0])
	}
	if saved != image {
		t.Errorf("the image is saved with the digest %s, want %s", saved, image)
	}
	for _, args := range next {
		h.sampan(t, args...)
	}
	check(t, h, done)
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

var (
	anonymousVolume = regexp.MustCompile(`(^|[^:0-9a-f])[0-9a-f]{64}\b`)
	imageID         = regexp.MustCompile(`\bsha256:[0-9a-f]{64}\b`)
	containerLine   = regexp.MustCompile(`(?m)^container (\S+) `)
	ownName         = regexp.MustCompile(`\b[0-9a-f]{12}\b`) // of a host: the container's identifier
)

// saved is the digest of an archive with the whole image of a state, or "" when
// there is none.
func (h *home) saved(t testing.TB, state string) string {
	t.Helper()
	id := imageID.FindString(state)
	if id == "" {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(h.sampan(t, "save", id))))
}

// pulledAndSaved is that of an image that a command pulls.
func (h *home) pulledAndSaved(t testing.TB, pull []string) string {
	t.Helper()
	h.sampan(t, pull...)
	sum := h.saved(t, h.state(t))
	if sum == "" {
		t.Fatalf("%q: there is no image", pull)
	}
	return sum
}

// state is what the home holds: as its user sees it, what its containers were
// made with, and the image store's files with their sizes.
func (h *home) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"images", "--no-trunc", "--format", "image {{.Repository}}:{{.Tag}} {{.ID}}"},
		{"ps", "-a", "--format", "container {{.Names}} {{.Image}} {{.State}}"},
		{"volume", "ls", "--format", "volume {{.Name}}"},
	} {
		lines := strings.Split(strings.TrimSpace(h.sampan(t, args...)), "\n")
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	for _, line := range containerLine.FindAllStringSubmatch(b.String(), -1) {
		// One of --rm may go meanwhile.
		made := h.try(t, "", "sampan", "inspect", "-f", "{{json .Config}} {{json .HostConfig}} {{json .Mounts}}", line[1]).stdout
		b.WriteString(line[1] + " " + ownName.ReplaceAllString(made, "(short id)"))
	}
	found := anonymousVolume.ReplaceAllString(b.String(), "${1}(anonymous)")
	for _, dir := range []string{"layers", "recipes", "blobs"} {
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
