package e2e_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inotifyTools makes a folder with Debian's inotifywait and its libraries, and
// returns the command that runs it where the folder is mounted as /tools.
func inotifyTools(t testing.TB) (dir string, command []string) {
	t.Helper()
	program, err := exec.LookPath("inotifywait")
	if err != nil {
		t.Fatalf("no inotifywait: run `make deps`: %v", err)
	}
	libs, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	dir = t.TempDir()
	loader := ""
	paths := []string{program}
	for _, f := range strings.Fields(string(libs)) {
		if filepath.IsAbs(f) {
			paths = append(paths, f)
		}
		if strings.Contains(f, "/ld-linux") {
			loader = filepath.Base(f)
		}
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(p)), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{"/tools/" + loader, "--library-path", "/tools", "/tools/inotifywait"}
}

// watching is an inotifywait in a container.
type watching struct {
	who   string
	lines chan string
}

// watch starts one that watches all of some paths, and waits until it does.
func (h *home) watch(t *testing.T, uid, container string, inotifywait []string, paths ...string) *watching {
	t.Helper()
	args := append([]string{"exec", "-u", uid + ":" + uid, container}, inotifywait...)
	args = append(args, "-m", "-r", "--format", "%e %w%f", "-e", "create,modify,attrib,delete,move")
	args = append(args, paths...)
	cmd := exec.CommandContext(t.Context(), filepath.Join(files.bin, "sampan"), args...)
	cmd.Env = h.environ()
	stdout, err1 := cmd.StdoutPipe()
	stderr, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		if strings.Contains(sc.Text(), "Watches established") {
			break
		}
	}
	go io.Copy(io.Discard, stderr)
	w := &watching{who: "uid " + uid, lines: make(chan string, 1<<16)}
	go func() {
		defer close(w.lines)
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			w.lines <- sc.Text()
		}
	}()
	return w
}

// until returns what is seen up to a line, equal ones that follow each other as
// one: the host's kernel and Sampan merge them too.
func (w *watching) until(t testing.TB, last string) []string {
	t.Helper()
	var got []string
	for end := time.After(5 * time.Minute); ; { // floods take their time
		select {
		case line, ok := <-w.lines:
			if !ok {
				t.Fatalf("%s: inotifywait ended after %q", w.who, got)
			}
			if got = append(got, line); line == last {
				return slices.Compact(got)
			}
		case <-end:
			t.Fatalf("%s: no %q, but %q", w.who, last, got)
		}
	}
}

// fileEvents is the daemon's account.
func (h *home) fileEvents(t testing.TB) (e struct{ Watched, Unwatched, Replayed, Void, Lost, Overflows int }) {
	t.Helper()
	var s struct{ Events any }
	s.Events = &e
	if err := json.Unmarshal([]byte(h.sampan(t, "machine", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	return e
}

// What the host does in a shared folder reaches watchers in containers, once;
// what a container does isn't repeated.
func TestEvents(t *testing.T) {
	h := newHome(t)
	h.load(t)
	tools, inotifywait := inotifyTools(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o777), os.Mkdir(at("sub"), 0o755), os.WriteFile(at("page"), []byte("old"), 0o644))
	file := filepath.Join(t.TempDir(), "file")
	must(os.WriteFile(file, []byte("old"), 0o644))
	h.sampan(t, "run", "-d", "--name", "one", "-v", dir+":/w", "-v", file+":/file", "-v", tools+":/tools:ro", "busybox", "sleep", "100000")
	watchers := []*watching{h.watch(t, "0", "one", inotifywait, "/w", "/file"), h.watch(t, "1000", "one", inotifywait, "/w", "/file")}
	// step wants exactly these events of what do does. Whether the content of an
	// editor's temporary file is told depends on how soon that is renamed.
	step := func(do func(), want ...string) {
		t.Helper()
		do()
		for _, w := range watchers {
			got := slices.DeleteFunc(w.until(t, want[len(want)-1]), func(line string) bool { return line == "MODIFY /w/.page" })
			if !slices.Equal(got, want) {
				t.Errorf("%s sees %q, want %q", w.who, got, want)
			}
		}
	}
	step(func() { must(os.WriteFile(at("f"), nil, 0o644)) }, "CREATE /w/f")
	step(func() { must(os.Truncate(at("f"), 4)) }, "MODIFY /w/f") // once: a write behind O_TRUNC is two
	step(func() { must(os.Chmod(at("f"), 0o600)) }, "ATTRIB /w/f")
	step(func() { must(os.Rename(at("f"), at("sub/g"))) }, "MOVED_FROM /w/f", "MOVED_TO /w/sub/g")
	step(func() { must(os.Remove(at("sub/g"))) }, "DELETE /w/sub/g")
	step(func() { must(os.Mkdir(at("new"), 0o755)) }, "CREATE,ISDIR /w/new")
	step(func() { must(os.Symlink("x", at("sub/link"))) }, "CREATE /w/sub/link")
	step(func() { must(os.Rename(at("new"), at("sub/new"))) }, "MOVED_FROM,ISDIR /w/new", "MOVED_TO,ISDIR /w/sub/new")
	// As editors save.
	step(func() { must(os.WriteFile(at(".page"), []byte("new"), 0o644), os.Rename(at(".page"), at("page"))) },
		"CREATE /w/.page", "MOVED_FROM /w/.page", "MOVED_TO /w/page")
	if got := h.sampan(t, "exec", "one", "cat", "/w/page"); got != "new" {
		t.Errorf("after the save the container reads %q", got)
	}
	// A file that is shared by itself is its inode, as with Docker: what replaces it
	// isn't seen, but that it has lost its name.
	step(func() { must(os.Truncate(file, 2)) }, "MODIFY /file")
	step(func() { must(os.Chmod(file, 0o606)) }, "ATTRIB /file")
	step(func() { must(os.WriteFile(file+"~", []byte("new"), 0o644), os.Rename(file+"~", file)) }, "ATTRIB /file")
	if got := h.sampan(t, "exec", "one", "cat", "/file"); got != "ol" {
		t.Errorf("the file that was shared is %q", got)
	}
	h.sampan(t, "exec", "-u", "1000:1000", "one", "sh", "-c", "echo x >>/file") // once, as all of the following
	// The container's own changes, and then one of the host: nothing else is seen.
	script := "cd /w && echo a >sub/a && echo b >>sub/a && mv sub/a b && chmod 600 b && rm b && mkdir own && rmdir own && ln page hard && rm hard"
	h.sampan(t, "exec", "-u", "1000:1000", "one", "sh", "-c", script)
	step(func() { must(os.Remove(at("page"))) }, "MODIFY /file", "CREATE /w/sub/a", "MODIFY /w/sub/a",
		"MOVED_FROM /w/sub/a", "MOVED_TO /w/b", "ATTRIB /w/b", "DELETE /w/b", "CREATE,ISDIR /w/own", "DELETE,ISDIR /w/own", "CREATE /w/hard", "DELETE /w/hard",
		"DELETE /w/page")
	if e := h.fileEvents(t); e.Lost != 0 || e.Replayed < 11 || e.Watched < 3 || e.Unwatched != 0 {
		t.Errorf("events: %+v", e)
	}
	if got := h.sampan(t, "machine", "status"); !strings.Contains(got, "Events:") {
		t.Errorf("machine status shows no file events:\n%s", got)
	}
	// What no container mounts isn't watched.
	h.sampan(t, "rm", "-f", "one")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // nobody tells of it
		e := h.fileEvents(t)
		if e.Watched == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("without a container: %+v", e)
		}
	}
}

// picture is what files a watcher takes to be there.
type picture map[string]bool

// look is what is there, without Git's own.
func look(t *testing.T, dir string) picture {
	t.Helper()
	p := picture{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			p["/w"+strings.TrimPrefix(path, dir)] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// update follows the lines of inotifywait.
func (p picture) update(lines []string) {
	for _, line := range lines {
		what, path, _ := strings.Cut(line, " ")
		if strings.Contains(path, "/.git/") {
			continue
		}
		switch what {
		case "CREATE", "MOVED_TO", "MODIFY":
			p[path] = true
		case "DELETE", "MOVED_FROM":
			delete(p, path)
		}
	}
}

// What comes in floods leaves a watcher with the right picture in the end. All of
// it is in folders that were there: of new ones inotifywait is told nothing that
// happened before it began to watch them, whoever makes them.
func TestEventFloods(t *testing.T) {
	if !nightly() {
		skip(t, "takes minutes: make nightly runs it")
	}
	h := newHome(t)
	h.load(t)
	tools, inotifywait := inotifyTools(t)
	dir, trash := t.TempDir(), t.TempDir()
	sh := func(script string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "TRASH="+trash, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=x", "GIT_AUTHOR_EMAIL=x", "GIT_COMMITTER_NAME=x", "GIT_COMMITTER_EMAIL=x")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	sh("mkdir big pkg code; touch code/page; for d in $(seq 500); do mkdir big/$d; (cd big/$d; touch $(seq 200)); done; for d in $(seq 20); do mkdir pkg/$d; done")
	// Two branches, of which each has 3,000 files of its own, and other content in
	// 2,000 more.
	sh(`cd code && git init -q -b one && for d in $(seq 50); do mkdir $d; echo keep > $d/keep; for f in $(seq 40); do echo one > $d/c$f; done; for f in $(seq 60); do echo x > $d/one$f; done; done
git add -A && git commit -qm one && git checkout -q -b two
for d in $(seq 50); do for f in $(seq 40); do echo two > $d/c$f; done; rm $d/one*; for f in $(seq 60); do echo x > $d/two$f; done; done
git add -A && git commit -qm two && git checkout -q one`)
	sh(`mkdir -p "$TRASH/unpacked" && cd "$TRASH/unpacked" && for d in $(seq 20); do mkdir $d; (cd $d; for f in $(seq 1000); do echo $f > $f; done); done && tar cf ../pkg.tar .`)
	h.sampan(t, "run", "-d", "--name", "one", "-v", dir+":/w", "-v", tools+":/tools:ro", "busybox", "sleep", "100000")
	begin := time.Now()
	w := h.watch(t, "0", "one", inotifywait, "/w")
	t.Logf("inotifywait watches 112,000 files after %s: %+v", time.Since(begin).Round(time.Second), h.fileEvents(t))
	seen := look(t, dir)
	for i, flood := range []struct{ what, script string }{
		{"changes among 100,000 files", "for d in $(seq 1 5 500); do echo new > big/$d/1; rm big/$d/2; mv big/$d/3 big/$d/moved; echo x > big/$d/new; done"},
		{"git checkout between distant branches", "cd code && git checkout -q two"},
		{"20,000 files unpacked", "tar xf $TRASH/pkg.tar -C pkg"},
		{"20,000 files removed", "find pkg -type f -delete"},
		{"an editor's 100 saves", "for i in $(seq 100); do echo $i > code/.page.swp; mv code/.page.swp code/page; done"},
	} {
		begin, before := time.Now(), h.fileEvents(t)
		sh(flood.script)
		done := time.Now()
		mark := fmt.Sprintf("mark%d", i)
		sh("touch " + mark)
		lines := w.until(t, "CREATE /w/"+mark)
		told := time.Now()
		seen.update(lines)
		if there := look(t, dir); !maps.Equal(seen, there) {
			t.Errorf("%s: the watcher takes %d files to be there, and %d are", flood.what, len(seen), len(there))
			n := 0
			for path := range there {
				if !seen[path] && n < 5 {
					n++
					t.Logf("unseen: %s", path)
				}
			}
			for path := range seen {
				if !there[path] && n < 10 {
					n++
					t.Logf("gone: %s", path)
				}
			}
			seen = there
		}
		after := h.fileEvents(t)
		t.Logf("%s: %s on the host, %s until told; %d told, %+v", flood.what, done.Sub(begin).Round(time.Millisecond),
			told.Sub(begin).Round(time.Millisecond), after.Replayed-before.Replayed, after)
		if i == 1 && !slices.Contains(lines, "MODIFY /w/code/1/c1") && !slices.Contains(lines, "CREATE /w/code/1/c1") {
			t.Errorf("%s: nothing of a file with other content", flood.what)
		}
	}
	if got := h.sampan(t, "exec", "one", "cat", "/w/code/page"); got != "100\n" {
		t.Errorf("after the saves the container reads %q", got)
	}
}

// What the host's kernel has no room to tell of is counted, shown and looked for:
// in the end the watcher has the right picture.
func TestEventOverflow(t *testing.T) {
	if !nightly() {
		skip(t, "takes a minute: make nightly runs it")
	}
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	room, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	h := newHome(t)
	h.load(t)
	tools, inotifywait := inotifyTools(t)
	dir := t.TempDir()
	for _, name := range []string{"listed", "used", "changed", "replaced"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h.sampan(t, "run", "-d", "--name", "one", "-v", dir+":/w", "-v", tools+":/tools:ro", "busybox", "sleep", "100000")
	w := h.watch(t, "0", "one", inotifywait, "/w")
	h.sampan(t, "exec", "one", "cat", "/w/used") // whereby the guest's kernel forgets the name
	if err := os.WriteFile(filepath.Join(dir, "told"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	seen := look(t, dir)
	w.until(t, "CREATE /w/told")
	pid := h.pid(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Each is made, touched and closed; what follows is lost for sure.
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", `seq $1 | xargs touch
rm listed used told; echo new > changed; echo new > replacing; mv replacing replaced; echo x > late`, "sh", strconv.Itoa(room))
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err := errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	there, begin := look(t, dir), time.Now()
	var lines []string
	for end := time.After(5 * time.Minute); !maps.Equal(seen, there) || !slices.Contains(lines, "MODIFY /w/changed"); {
		select {
		case line := <-w.lines:
			lines = append(lines, line)
			seen.update([]string{line})
		case <-end:
			for path := range seen {
				if !there[path] {
					t.Logf("gone: %s", path)
				}
			}
			t.Fatalf("the watcher takes %d files to be there, and %d are", len(seen), len(there))
		}
	}
	e := h.fileEvents(t)
	t.Logf("right after %s: %+v", time.Since(begin).Round(time.Millisecond), e)
	if e.Overflows == 0 {
		t.Error("no overflow is counted")
	}
	if got := h.sampan(t, "machine", "status"); !strings.Contains(got, "overflows") {
		t.Errorf("machine status shows no overflow:\n%s", got)
	}
	if got := h.sampan(t, "exec", "one", "cat", "/w/replaced"); got != "new\n" {
		t.Errorf("the container reads %q", got)
	}
}
