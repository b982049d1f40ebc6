package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"sampan/host/imagetest"
)

// kill -9 of QEMU, sampand or a process of the agent at random moments, while
// two users tag, run, exec, write to volumes and remove, and a third one pulls an
// image and removes it, again and again. Whatever was acknowledged holds, the
// next command works, one daemon and one machine run, and at the end nothing
// does. SAMPAN_SEED reproduces a run, as far as timing allows.
func TestRandomKills(t *testing.T) {
	onceAsUser(t)
	cycles := 10
	if nightly() {
		cycles = 100
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SAMPAN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("SAMPAN_SEED: %v", err)
		}
	}
	t.Logf("SAMPAN_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := newHome(t)
	ref := faultImage(t)
	h.sampan(t, "pull", "-q", ref)
	image := pullImage(t)
	puller := newKuser(h, image.ref, "p", seed)
	puller.pulls = true
	users := []*kuser{puller, newKuser(h, ref, "a", seed), newKuser(h, ref, "b", seed)}
	victims, order := []string{"QEMU", "sampand", "a process of the agent"}, []int(nil)
	killed := map[string]int{}
	for cycle := range cycles {
		if len(order) == 0 {
			order = rnd.Perm(len(victims)) // each as often as the others
		}
		victim := h.killInTheMix(t, users, image, victims[order[0]], rnd)
		order = order[1:]
		killed[victim]++
		acked, lost := 0, 0
		for _, u := range users {
			u.check(t)
			acked, lost = acked+u.acked, lost+u.lost
		}
		if puller.is["image"] != "" && cycle%3 == 2 { // not each time: it takes a container
			image.check(t, h)
		}
		h.oneOfEach(t)
		if (cycle+1)%10 == 0 {
			t.Logf("%d cycles: %d commands acknowledged, %d cut off; of these %d and %d pulled and removed an image, of which %d layers were fetched",
				cycle+1, acked, lost, puller.acked, puller.lost, image.fetched.Load())
		}
		if t.Failed() {
			t.Fatalf("cycle %d: %s was killed", cycle, victim)
		}
	}
	t.Logf("killed: %v", killed)
	h.empty(t)
	h.stopDaemon(t)
	if left := h.processes(t); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
}

// killInTheMix kills while the users work, and says whom. When it returns, they are
// at rest.
func (h *home) killInTheMix(t *testing.T, users []*kuser, image *pulledImage, victim string, rnd *rand.Rand) string {
	t.Helper()
	var stop, killing atomic.Bool
	var wg sync.WaitGroup
	defer func() {
		killing.Store(true)
		stop.Store(true)
		wg.Wait()
	}()
	fetched := image.fetched.Load()
	for _, u := range users {
		u.killing = &killing
		wg.Go(func() {
			for !stop.Load() {
				u.step(t)
			}
		})
	}
	h.machineUp(t)
	eventually(t, 60*time.Second, "a layer is pulled", func() bool { return image.fetched.Load() > fetched })
	time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
	killing.Store(true)
	return h.killAtRandom(t, victim, rnd)
}

// onceAsUser is for tests that take long and have little to do with who the user
// is on the host: when the suite runs as root, its second run, as an ordinary
// user, is the one that has them.
func onceAsUser(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 && os.Getenv("SAMPAN_AS_ROOT") == "" {
		skip(t, "run by TestAsOrdinaryUser; SAMPAN_AS_ROOT=1 runs it here")
	}
}

// machineUp waits for the machine: a kill before its boot finds nothing.
func (h *home) machineUp(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "the machine runs", func() bool {
		return strings.Contains(h.sampan(t, "machine", "status"), "State:      running")
	})
}

// killAtRandom kills, and says whom.
func (h *home) killAtRandom(t *testing.T, victim string, rnd *rand.Rand) string {
	t.Helper()
	switch victim {
	case "QEMU":
		pid := h.machinePid(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !waitGone(pid, 10*time.Second) {
			t.Errorf("QEMU (pid %d) lives on after SIGKILL", pid)
		}
	case "sampand":
		qemu, pid := h.machinePid(t), h.pid(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !waitGone(pid, 10*time.Second) || !waitGone(qemu, 10*time.Second) {
			t.Errorf("sampand (pid %d) or its QEMU (pid %d) lives on after SIGKILL", pid, qemu)
		}
	default:
		// Any child of PID 1 but the shell that does this: dead when there is no
		// such process any more, or only what is left of one.
		script := fmt.Sprintf(`for try in $(seq 300); do
	set -- $(grep -l '^PPid:.1$' /proc/[0-9]*/status 2> /dev/null | grep -v /$$/)
	if [ $# -gt 0 ]; then
		shift $((%d %% $#))
		dir=${1%%%%/status} && name=$(cat $dir/comm) && ! grep -q '^State:.Z' $1 && kill -9 ${dir#/proc/} && echo $name && exit
	fi
	sleep 0.1
done`, rnd.IntN(1000))
		name := h.sampan(t, "machine", "shell", "busybox", "sh", "-c", script)
		if name == "" {
			t.Error("in 30 s the agent had no process to be killed")
		}
		return victim + ", " + strings.TrimSpace(name)
	}
	return victim
}

// oneOfEach wants the home's daemon and its machine to run, and nothing else. A
// process may take a moment to end.
func (h *home) oneOfEach(t *testing.T) {
	t.Helper()
	want := []string{"qemu-system-x86", "sampand"}
	var got []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got = h.processes(t)
		var names []string
		for _, p := range got {
			_, name, _ := strings.Cut(p, " ")
			names = append(names, name)
		}
		if slices.Sort(names); slices.Equal(names, want) {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%q run, want %q", got, want)
			return
		}
	}
}

// empty removes all that can be, and wants the image store to be empty then, with
// nothing left of what was cut off.
func (h *home) empty(t *testing.T) {
	t.Helper()
	remove := func(list, command []string) {
		if names := strings.Fields(h.sampan(t, list...)); len(names) > 0 {
			slices.Sort(names)
			h.sampan(t, append(command, slices.Compact(names)...)...)
		}
	}
	remove([]string{"ps", "-a", "-q"}, []string{"rm", "-f"})
	remove([]string{"images", "-q"}, []string{"rmi", "-f"}) // which may not be in use
	for _, dir := range []string{"layers", "recipes", "blobs", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(h.dir, "images", dir))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: images/%s/%s", dir, e.Name())
		}
	}
	h.untidy(t)
}

// A pulledImage is what is pulled and removed again and again: many layers, none
// of them of another image.
type pulledImage struct {
	ref     string
	sum     string       // SHA-256 of all its files
	fetched atomic.Int64 // layers asked of the registry
}

func pullImage(t *testing.T) *pulledImage {
	t.Helper()
	img := &pulledImage{}
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			img.fetched.Add(1)
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	base := imageFromArchive(t, "busybox.tar")
	cfg, err := base.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	chacha := rand.NewChaCha8([32]byte{})
	sum := sha256.New()
	for n := range 6 {
		data := make([]byte, 256<<10) // can't be compressed
		chacha.Read(data)
		sum.Write(data)
		layer, err := imagetest.Layer(imagetest.File{Name: fmt.Sprintf("part%d", n), Data: data, Mode: 0o644})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	made, err := imagetest.Image(cfg.Config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	img.ref, img.sum = strings.TrimPrefix(srv.URL, "http://")+"/parts:1", fmt.Sprintf("%x", sum.Sum(nil))
	if err := imagetest.Push(img.ref, made); err != nil {
		t.Fatal(err)
	}
	return img
}

// check reads every file of the image.
func (img *pulledImage) check(t *testing.T, h *home) {
	t.Helper()
	if got := h.sampan(t, "run", "--rm", "--pull", "never", img.ref, "sh", "-c", "cat /part? | sha256sum"); got != img.sum+"  -\n" {
		t.Errorf("the files of the image that was pulled have the sum %q, want %s", got, img.sum)
	}
}

// processes lists what runs for this home.
func (h *home) processes(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, dir := range dirs {
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err == nil && bytes.Contains(env, []byte("SAMPAN_HOME="+h.dir+"\x00")) {
			out = append(out, filepath.Base(dir)+" "+strings.TrimSpace(string(comm)))
		}
	}
	return out
}

// kuser is one user's work, and what was acknowledged of it. Keys are "tag N",
// "container N", "volume N", "file N" and, of the one that pulls and does nothing
// else, "image"; the values what they must have: "" for absence. maybe has those
// whose last change was cut off, with what it was to be.
type kuser struct {
	h     *home
	ref   string
	name  string
	rnd   *rand.Rand
	is    map[string]string
	maybe map[string]string
	count int
	acked int
	lost  int
	pulls bool

	killing *atomic.Bool // commands may fail from now on
}

func newKuser(h *home, ref, name string, seed uint64) *kuser {
	return &kuser{h: h, ref: ref, name: name, rnd: rand.New(rand.NewPCG(seed, uint64(name[0]))), is: map[string]string{}, maybe: map[string]string{}}
}

// change runs a command that, once acknowledged, gives key a value.
func (u *kuser) change(t *testing.T, key, value string, args ...string) {
	if _, open := u.maybe[key]; open {
		return // until the next check
	}
	r := u.h.try(t, "", "sampan", args...)
	if r.code == 0 {
		u.is[key] = value
		u.acked++
		return
	}
	if !u.killing.Load() {
		t.Errorf("%q failed, and nobody was killed: %+v", args, r)
	}
	u.maybe[key] = value
	u.lost++
}

// having picks one of the keys of a kind that are there, or "".
func (u *kuser) having(kind string) string {
	var keys []string
	for key, value := range u.is {
		if _, open := u.maybe[key]; !open && value != "" && strings.HasPrefix(key, kind+" ") {
			keys = append(keys, strings.TrimPrefix(key, kind+" "))
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	return keys[u.rnd.IntN(len(keys))]
}

func (u *kuser) step(t *testing.T) {
	u.count++
	if u.pulls {
		u.repull(t)
		return
	}
	fresh := fmt.Sprintf("%s%d", u.name, u.count)
	files := "files-" + u.name + ":/files"
	file, value := fmt.Sprintf("%s-file%d", u.name, u.rnd.IntN(4)), fmt.Sprint(u.count)
	write := fmt.Sprintf("echo %s > /files/%s.new && mv /files/%[2]s.new /files/%[2]s && sync", value, file)
	switch u.rnd.IntN(9) {
	case 0, 1:
		u.change(t, "tag "+fresh+":1", "there", "tag", u.ref, fresh+":1")
	case 2:
		if tag := u.having("tag"); tag != "" {
			u.change(t, "tag "+tag, "", "rmi", tag)
		}
	case 3, 4:
		u.change(t, "file "+file, value, "run", "--rm", "-v", files, u.ref, "sh", "-c", write)
	case 5:
		u.change(t, "container "+fresh, "there", "run", "-d", "--name", fresh, "-v", files, u.ref, "sleep", "100000")
	case 6:
		if c := u.having("container"); c != "" {
			if strings.Contains(u.h.try(t, "", "sampan", "ps", "--format", "{{.Names}}").stdout, c+"\n") {
				u.change(t, "file "+file, value, "exec", c, "sh", "-c", write)
			}
		}
	case 7:
		if c := u.having("container"); c != "" {
			u.change(t, "container "+c, "", "rm", "-f", c)
		}
	case 8:
		if v := u.having("volume"); v != "" && u.rnd.IntN(2) == 0 {
			u.change(t, "volume "+v, "", "volume", "rm", v)
		} else {
			u.change(t, "volume "+fresh, "there", "volume", "create", fresh)
		}
	}
}

// repull pulls the user's image, or removes it when it is there.
func (u *kuser) repull(t *testing.T) {
	if _, open := u.maybe["image"]; open { // whatever becomes of it, it may be there
		u.h.try(t, "", "sampan", "pull", "-q", u.ref)
	} else if u.is["image"] == "" {
		u.change(t, "image", "there", "pull", "-q", u.ref)
	} else {
		u.change(t, "image", "", "rmi", u.ref)
		time.Sleep(200 * time.Millisecond) // the processors are for the others, too
	}
}

// check compares what is there with what was acknowledged; what was cut off may
// be either, and is what it is from now on: a file that was renamed when the
// process was killed before its sync is synced here.
func (u *kuser) check(t *testing.T) {
	t.Helper()
	found := map[string]string{}
	collect := func(kind, text string) {
		for _, line := range strings.Fields(text) {
			// What a user made has a number, unlike the names that a client made up
			// for --rm, such as patient_magellan.
			if rest, ok := strings.CutPrefix(line, u.name); ok && strings.ContainsAny(rest[:min(1, len(rest))], "0123456789") {
				found[kind+" "+line] = "there"
			}
		}
	}
	images := u.h.sampan(t, "images", "--format", "{{.Repository}}:{{.Tag}}")
	if u.pulls && slices.Contains(strings.Fields(images), u.ref) {
		found["image"] = "there"
	}
	collect("tag", images)
	collect("container", u.h.sampan(t, "ps", "-a", "--format", "{{.Names}}"))
	collect("volume", u.h.sampan(t, "volume", "ls", "-q"))
	list := ""
	if !u.pulls {
		list = u.h.sampan(t, "run", "--rm", "-v", "files-"+u.name+":/files", u.ref, "sh", "-c", "cd /files; sync; for f in "+u.name+"-file?; do [ ! -e $f ] || echo $f $(cat $f); done")
	}
	for _, line := range strings.Split(strings.TrimSpace(list), "\n") {
		if name, value, ok := strings.Cut(line, " "); ok {
			found["file "+name] = value
		}
	}
	for key, value := range u.is {
		if got, may := found[key], u.maybe[key]; got != value {
			if _, open := u.maybe[key]; !open || got != may {
				t.Errorf("%s: %q was acknowledged, %q is found", key, value, got)
			}
		}
	}
	for key, got := range found {
		_, known := u.is[key]
		may, open := u.maybe[key]
		if !known && !(open && may == got) {
			t.Errorf("%s is %q, and was never asked for", key, got)
		}
	}
	for key := range u.maybe {
		u.is[key] = found[key]
	}
	clear(u.maybe)
}
