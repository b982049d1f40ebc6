package e2e_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"sampan/host/imagetest"
)

// makeWork packs a Debian root with git, make, gcc and sqlite3.
func makeWork(root, archive string) error {
	base, err := imagetest.TreeLayer(root)
	if err != nil {
		return fmt.Errorf("%w: run `make nightly`, which makes it", err)
	}
	img, err := imagetest.Image(v1.Config{Env: []string{
		"PATH=/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@b",
	}}, base)
	if err != nil {
		return err
	}
	return imagetest.Archive(archive, "work:latest", img)
}

// What developers do in shared folders and volumes, with the real programs, as
// two users of the container.
func TestRealWork(t *testing.T) {
	if !nightly() {
		skip(t, "`make nightly` runs it: it takes minutes, and 800 MB of Debian packages")
	}
	h := newHome(t)
	for _, name := range []string{"work", "apps", "nginx"} {
		h.sampan(t, "load", "-q", "-i", filepath.Join(files.dir, "images", name+".tar"))
	}
	t.Run("nginx", h.serveChanges)
	for _, uid := range []string{"0", "1000"} {
		t.Run(uid, func(t *testing.T) {
			w := &workplace{home: h, uid: uid, dir: t.TempDir()}
			w.sampan(t, "run", "-d", "--name", "work", "-u", uid+":"+uid, "-v", w.dir+":/w", "-v", "work"+uid+":/v", "-w", "/w", "work", "sleep", "100000")
			defer w.sampan(t, "rm", "-f", "work")
			t.Run("git", w.git)
			t.Run("tree", w.tree)
			t.Run("make", w.make)
			w.sampan(t, "exec", "-u", "0", "work", "chmod", "777", "/v")
			for _, at := range []string{"/w", "/v"} {
				t.Run("sqlite"+at, func(t *testing.T) { w.sqlite(t, at) })
			}
		})
	}
	for _, source := range []string{t.TempDir(), "pgdata"} {
		t.Run("postgres on "+filepath.Base(source), func(t *testing.T) { h.postgres(t, source) })
	}
}

// workplace is a container "work" and its folder, /w there.
type workplace struct {
	*home
	uid, dir string
}

// sh runs a script in the container.
func (w *workplace) sh(t *testing.T, script string) string {
	t.Helper()
	began := time.Now()
	defer func() { t.Logf("%.50q took %s", script, time.Since(began).Round(time.Millisecond)) }()
	return w.sampan(t, "exec", "work", "sh", "-euc", script)
}

// git makes a repository and a clone of it in the shared folder; what the host
// changes shows in its status.
func (w *workplace) git(t *testing.T) {
	w.sh(t, `git init -q -b main origin && cd origin
		for d in 1 2 3 4 5 6 7 8; do mkdir d$d; for f in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $d/$f > d$d/$f; done; done
		git add . && git commit -qm one && git checkout -qb other && git rm -rq d1 && echo new > d2/1 && git commit -qam two && git checkout -q main`)
	if out := w.sh(t, "git clone -q origin clone && cd clone && git status --porcelain && git fsck --strict 2>&1 && ls | wc -l"); out != "8\n" {
		t.Errorf("clone: %q", out)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "clone/d3/4"), []byte("by the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.dir, "clone/d5/6")); err != nil {
		t.Fatal(err)
	}
	if out := w.sh(t, "cd clone && git status --porcelain"); out != " M d3/4\n D d5/6\n" {
		t.Errorf("status after the host's changes: %q", out)
	}
	if out := w.sh(t, "cd clone && git checkout -q . && git checkout -q other && git status --porcelain && cat d2/1 && ls | wc -l"); out != "new\n7\n" {
		t.Errorf("the other branch: %q", out)
	}
}

const (
	packages = 500 // of a project
	perPack  = 10  // files
)

// tree unpacks as a package manager does, 5,000 files, and removes them.
func (w *workplace) tree(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	content := func(p, f int) string { return strings.Repeat(fmt.Sprintf("exports.f%d_%d = 1;\n", p, f), 1+f*7) }
	for p := range packages {
		for f := range perPack {
			text := content(p, f)
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("node_modules/@scope%d/package-%d/lib/%d.js", p%20, p, f), Mode: 0o644, Size: int64(len(text)), ModTime: imagetest.Epoch}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(tw, text)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "tree.tar"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := w.sh(t, "tar xf tree.tar --no-same-owner && find node_modules -type f | wc -l"); strings.TrimSpace(out) != fmt.Sprint(packages*perPack) {
		t.Errorf("in the container: %s files", out)
	}
	n := 0
	err := filepath.WalkDir(filepath.Join(w.dir, "node_modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		var p, f int
		rel := path[strings.LastIndex(path, "/package-"):]
		if _, err := fmt.Sscanf(rel, "/package-%d/lib/%d.js", &p, &f); err != nil {
			return err
		}
		got, err := os.ReadFile(path)
		if err == nil && string(got) != content(p, f) {
			err = fmt.Errorf("%s has other content", path)
		}
		return err
	})
	if err != nil || n != packages*perPack {
		t.Errorf("on the host: %d files, %v", n, err)
	}
	w.sh(t, "rm -rf node_modules")
	if _, err := os.Lstat(filepath.Join(w.dir, "node_modules")); !os.IsNotExist(err) {
		t.Errorf("the tree is still there: %v", err)
	}
}

// makefile builds a program of several files.
const makefile = `
OBJS = main.o a.o b.o c.o d.o e.o
prog: $(OBJS)
	gcc -o $@ $(OBJS)
%.o: %.c all.h
	gcc -O1 -Wall -c -o $@ $<
`

// make builds a C project, and again what the host has changed.
func (w *workplace) make(t *testing.T) {
	dir := filepath.Join(w.dir, "project")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Makefile", makefile)
	write("all.h", "int a(void), b(void), c(void), d(void), e(void);\n")
	write("main.c", "#include <stdio.h>\n#include \"all.h\"\nint main(void) { printf(\"%d\\n\", a() + b() + c() + d() + e()); return 0; }\n")
	for i, f := range []string{"a", "b", "c", "d", "e"} {
		write(f+".c", fmt.Sprintf("#include \"all.h\"\nint %s(void) { return %d; }\n", f, i))
	}
	if out := w.sh(t, "cd project && make -s -j2 && ./prog && make -q && echo done"); out != "10\ndone\n" {
		t.Errorf("make: %q", out)
	}
	write("c.c", "#include \"all.h\"\nint c(void) { return 100; }\n")
	out := w.sh(t, "cd project && make -j2 && ./prog")
	if !strings.HasSuffix(out, "\n108\n") || strings.Count(out, "gcc") != 2 || !strings.Contains(out, "c.o c.c") {
		t.Errorf("make after a change: %q", out)
	}
}

// sqlite has two containers write to one database at once.
func (w *workplace) sqlite(t *testing.T, at string) {
	const each = 25
	w.sampan(t, "run", "-d", "--name", "second", "--volumes-from", "work", "-u", w.uid+":"+w.uid, "work", "sleep", "100000")
	defer w.sampan(t, "rm", "-f", "second")
	for _, mode := range []string{"delete", "wal"} {
		db := at + "/" + mode + ".db"
		w.sh(t, fmt.Sprintf("sqlite3 %s 'pragma journal_mode=%s; create table rows (who text, n int, unique (who, n)); create table sums (total int); insert into sums values (0)' >/dev/null", db, mode))
		// A read and a write that depends on it, by one process each.
		script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do
			sqlite3 -cmd '.timeout 60000' %s "begin immediate; insert into rows values ('$0', $i); update sums set total = total + 1; commit"
			i=$((i+1)); done`, each, db)
		var cmds []*exec.Cmd
		for _, name := range []string{"work", "second"} {
			cmd := w.command(t, "sampan", "exec", name, "sh", "-euc", script, name)
			cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			cmds = append(cmds, cmd)
		}
		for _, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v", mode, err)
			}
		}
		got := w.sh(t, fmt.Sprintf("sqlite3 %s 'pragma integrity_check; select count(*), (select total from sums) from rows'", db))
		if want := fmt.Sprintf("ok\n%d|%[1]d\n", 2*each); got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
	}
}

// postgres runs a database on a source, kills it while it works, and has it
// recover.
func (h *home) postgres(t *testing.T, source string) {
	mount := source + ":/db"
	h.sampan(t, "run", "--rm", "-v", mount, "apps", "sh", "-c", "mkdir /db/data && chown postgres: /db/data")
	h.sampan(t, "run", "--rm", "-v", mount, "-u", "postgres", "apps", "initdb", "-D", "/db/data", "--no-sync", "-A", "trust", "-U", "postgres")
	h.sampan(t, "run", "-d", "--name", "db", "-v", mount, "-u", "postgres", "apps", "postgres", "-D", "/db/data", "-c", "listen_addresses=", "-c", "unix_socket_directories=/tmp")
	defer h.sampan(t, "rm", "-f", "db")
	ready := func() {
		t.Helper()
		eventually(t, 2*time.Minute, "postgresql is ready", func() bool {
			return h.try(t, "", "sampan", "exec", "db", "pg_isready", "-q", "-h", "/tmp").code == 0
		})
	}
	sql := func(q string) string {
		t.Helper()
		return strings.TrimSpace(h.sampan(t, "exec", "db", "psql", "-h", "/tmp", "-U", "postgres", "-Atc", q))
	}
	ready()
	h.sampan(t, "exec", "db", "pgbench", "-h", "/tmp", "-U", "postgres", "-i", "-q", "postgres")
	out := h.sampan(t, "exec", "db", "pgbench", "-h", "/tmp", "-U", "postgres", "-n", "-c", "2", "-t", "25", "postgres")
	if !strings.Contains(out, "processed: 50/50") {
		t.Errorf("pgbench: %s", out)
	}
	work := h.command(t, "sampan", "exec", "db", "pgbench", "-h", "/tmp", "-U", "postgres", "-n", "-c", "2", "-T", "60", "postgres")
	if err := work.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "it works", func() bool { return sql("select count(*) > 60 from pgbench_history") == "t" })
	done := atoi(t, sql("select count(*) from pgbench_history"))
	h.sampan(t, "kill", "db")
	work.Wait() // fails: its server is gone
	h.sampan(t, "start", "db")
	ready()
	if n := atoi(t, sql("select count(*) from pgbench_history")); n < done {
		t.Errorf("%d transactions were done, %d are left", done, n)
	}
	// What the benchmark keeps equal, and every row is there.
	if got := sql("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_accounts)"); got != "t|100000" {
		t.Errorf("after the crash: %s", got)
	}
	h.sampan(t, "stop", "db")
}

// serveChanges has nginx serve a folder in which the host changes files.
func (h *home) serveChanges(t *testing.T) {
	dir, port := t.TempDir(), fmt.Sprint(freePort(t))
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("page", "first")
	h.sampan(t, "run", "-d", "--name", "web", "-p", "127.0.0.1:"+port+":80", "-v", dir+":/srv:ro", "nginx")
	defer h.sampan(t, "rm", "-f", "web")
	serves := func(within time.Duration, want string) {
		t.Helper()
		eventually(t, within, "nginx serves "+want[:min(len(want), 20)], func() bool {
			got, err := get("http://127.0.0.1:" + port + "/page")
			return err == nil && got == want
		})
	}
	serves(20*time.Second, "first")
	for i := range 30 {
		text := strings.Repeat(fmt.Sprintf("version %d\n", i), 1+(i*7919)%5000)
		if i%2 == 0 {
			write("page", text)
		} else {
			write("page.new", text)
			if err := os.Rename(filepath.Join(dir, "page.new"), filepath.Join(dir, "page")); err != nil {
				t.Fatal(err)
			}
		}
		serves(time.Second, text) // the promise
	}
}
