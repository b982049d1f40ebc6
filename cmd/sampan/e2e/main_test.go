// Package e2e_test runs Sampan as its users do: the built binaries, the real
// virtual machine, the real docker client. When the tests run as root they run
// a second time as an ordinary user made for them.
package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sampan/host/imagetest"
	"sampan/host/witness"
)

// dirEnv names the folder that the first run prepared for the second:
// bin/, guest/, testdata/, images/.
const dirEnv = "SAMPAN_E2E_DIR"

// skipsEnv names the file where the second run writes which tests it skips, and
// why, a line each.
const skipsEnv = "SAMPAN_E2E_SKIPS"

// files is the prepared folder, readable by everybody.
var files struct{ dir, bin, guest, busybox string }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getenv(trapEnv) != "" {
		fmt.Fprintln(os.Stderr, "become a trapped daemon:", becomeTrapped(os.Args[1:]))
		return 1
	}
	dir := os.Getenv(dirEnv)
	if dir == "" {
		var err error
		if dir, err = prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare end-to-end tests:", err)
			return 1
		}
		defer os.RemoveAll(dir)
	}
	files.dir, files.bin, files.guest = dir, filepath.Join(dir, "bin"), filepath.Join(dir, "guest")
	files.busybox = filepath.Join(dir, "images", "busybox.tar")
	return m.Run()
}

// prepare builds the binaries, copies the guest bundle and makes the images.
func prepare() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "sampan-e2e-")
	if err != nil {
		return "", err
	}
	fail := func(err error) (string, error) { os.RemoveAll(dir); return "", err }
	if err := os.Chmod(dir, 0o755); err != nil {
		return fail(err)
	}
	for _, sub := range []string{"bin", "images"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return fail(err)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "bin")+"/", "./cmd/sampan", "./cmd/sampand", "./cmd/sampan/e2e/peer")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("go build: %w\n%s", err, out))
	}
	containers := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "bin", "testcontainers.test"), ".")
	containers.Dir = filepath.Join(root, "cmd", "sampan", "e2e", "testcontainers")
	containers.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := containers.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("go test -c testcontainers: %w\n%s", err, out))
	}
	guest := os.Getenv("SAMPAN_GUEST")
	if guest == "" {
		guest = filepath.Join(root, "dist", "guest-"+runtime.GOARCH)
	}
	if _, err := os.Stat(filepath.Join(guest, "manifest.json")); err != nil {
		return fail(fmt.Errorf("no guest bundle: run `make guest`: %w", err))
	}
	if err := os.CopyFS(filepath.Join(dir, "guest"), os.DirFS(guest)); err != nil {
		return fail(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS("testdata")); err != nil {
		return fail(err)
	}
	if err := copyDescriptions(filepath.Join(dir, "api")); err != nil {
		return fail(err)
	}
	if err := dockerClient(root, filepath.Join(dir, "bin")); err != nil {
		return fail(err)
	}
	img, err := imagetest.Busybox()
	if err == nil {
		err = imagetest.Archive(filepath.Join(dir, "images", "busybox.tar"), "busybox:latest", img)
	}
	err = errors.Join(err,
		makeOdd(filepath.Join(dir, "images")),
		makePosix(root, filepath.Join(dir, "bin")),
		makeSandbox(root, filepath.Join(dir, "images")),
		makeNginx(filepath.Join(root, "dist", "root-nginx"), filepath.Join(dir, "images", "nginx.tar")),
		makeApps(filepath.Join(root, "dist", "root-apps"), filepath.Join(dir, "images", "apps.tar")),
		composeClient(root, dir),
		prepareNightly(root, dir))
	if err != nil {
		return fail(err)
	}
	return dir, nil
}

// dockerClient puts the real docker client into bin: the machine's, or the one
// of Debian's package that `make test` has unpacked, run with its own libraries.
func dockerClient(root, bin string) error {
	target := filepath.Join(bin, "docker")
	if path, err := exec.LookPath("docker"); err == nil {
		return os.Symlink(path, target)
	}
	tree := filepath.Join(root, "dist", "root-docker")
	if _, err := os.Stat(filepath.Join(tree, "usr/bin/docker")); err != nil {
		return fmt.Errorf("no docker client: run `make test`, which fetches it: %w", err)
	}
	return ownLibraries(tree, filepath.Join(filepath.Dir(bin), "docker"), "usr/bin/docker", target)
}

// composeClient puts Compose into bin, from the package that `make test` has
// unpacked.
func composeClient(root, dir string) error {
	const program = "usr/libexec/docker/cli-plugins/docker-compose"
	tree := filepath.Join(root, "dist", "root-compose")
	if _, err := os.Stat(filepath.Join(tree, program)); err != nil {
		return fmt.Errorf("no Compose: run `make test`, which fetches it: %w", err)
	}
	return ownLibraries(tree, filepath.Join(dir, "compose"), program, filepath.Join(dir, "bin", "docker-compose"))
}

// ownLibraries copies a Debian root, and makes a command that runs a program of
// it with the libraries there.
func ownLibraries(tree, own, program, command string) error {
	if err := os.CopyFS(own, os.DirFS(tree)); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %[1]s/usr/lib64/ld-linux-x86-64.so.2 --library-path %[1]s/usr/lib/x86_64-linux-gnu %[1]s/%[2]s \"$@\"\n", own, program)
	return os.WriteFile(command, []byte(script), 0o755)
}

// prepareNightly makes what only the long tests need.
func prepareNightly(root, dir string) error {
	if !nightly() {
		return nil
	}
	return makeWork(filepath.Join(root, "dist", "root-work"), filepath.Join(dir, "images", "work.tar"))
}

// repository is the module's folder.
func repository() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	return strings.TrimSpace(string(out)), err
}

// TestAsOrdinaryUser runs every other test of this package as a user made for
// it: nothing in Sampan may need root.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: the other tests run as an ordinary user already")
		return
	}
	name := fmt.Sprintf("sampan%d", os.Getpid()%100000)
	if out, err := exec.Command("useradd", "--create-home", name).CombinedOutput(); err != nil {
		t.Fatalf("useradd: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("userdel", "--remove", name).CombinedOutput(); err != nil {
			t.Logf("userdel: %v\n%s", err, out)
		}
	})
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(files.dir, "e2e.test")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(files.dir, "small")
	mountSmall(t, small)
	if err := os.Chown(small, atoi(t, u.Uid), atoi(t, u.Gid)); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(files.dir, "tmp") // the user's own: /tmp may be closed to it
	if err := errors.Join(os.Mkdir(tmp, 0o700), os.Chown(tmp, atoi(t, u.Uid), atoi(t, u.Gid))); err != nil {
		t.Fatal(err)
	}
	args := []string{"-u", name, "--", self, "-test.skip", "^TestAsOrdinaryUser$", "-test.timeout", secondLimit()}
	f := os.Getenv("SAMPAN_E2E_RUN")
	if f != "" {
		args = append(args, "-test.run", f)
	}
	if testing.Verbose() && (f != "" || nightly()) { // a whole run has too much to tell
		args = append(args, "-test.v")
	}
	skips := filepath.Join(files.dir, "skips")
	if err := os.WriteFile(skips, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(skips, 0o666); err != nil { // whatever the umask
		t.Fatal(err)
	}
	cmd := exec.Command("runuser", args...)
	cmd.Dir = files.dir
	cmd.Env = append(os.Environ(), dirEnv+"="+files.dir, smallEnv+"="+small, skipsEnv+"="+skips, "HOME="+u.HomeDir, "USER="+name, "XDG_CACHE_HOME=", "TMPDIR="+tmp,
		"PATH=/usr/local/bin:/usr/bin:/bin") // Debian's for an ordinary user: no sbin
	t.Logf("as %s (uid %s):", name, u.Uid)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	said, err := os.ReadFile(skips)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(said)) {
		skipped, reason, _ := strings.Cut(strings.TrimSpace(line), ": ")
		t.Run(skipped, func(t *testing.T) { t.Skip(reason) })
	}
}

// skip skips a test, and tells the first run when it is in the second.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if path := os.Getenv(skipsEnv); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintf(f, "%s: %s\n", t.Name(), reason)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Skip(reason)
}

// secondLimit bounds the second run.
func secondLimit() string {
	if nightly() {
		return "4h"
	}
	return "25m"
}

// home is one $SAMPAN_HOME with its daemon.
type home struct {
	dir string
	env []string // additions to the environment

	witness   *witness.Proxy // all docker clients speak through it
	watched   bool           // and sampan as well
	terminals int            // made so far
}

// newHome makes a home whose daemon is stopped at the test's end.
func newHome(t testing.TB) *home {
	t.Helper()
	dir, err := os.MkdirTemp("", "sampan-")
	if err != nil {
		t.Fatal(err)
	}
	h := &home{dir: filepath.Join(dir, "home")}
	h.listen(t)
	t.Cleanup(func() {
		h.witness.Close()
		h.stopDaemon(t)
		if t.Failed() {
			h.dump(t)
		}
		os.RemoveAll(dir)
	})
	return h
}

func (h *home) environ() []string {
	return append(append(os.Environ(),
		"SAMPAN_HOME="+h.clientHome(), "SAMPAN_GUEST="+files.guest,
		"DOCKER_HOST=unix://"+h.witnessed()+"/docker.sock",
		"DOCKER_CONFIG="+h.dir+"/docker-client",
		"PATH="+files.bin+":"+os.Getenv("PATH")), h.env...)
}

// command is a bounded command with the home's environment.
func (h *home) command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	if name == "sampan" || name == "docker" {
		name = filepath.Join(files.bin, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = h.environ()
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// result of a command.
type result struct {
	stdout, stderr string
	code           int
}

// try runs a command and returns whatever comes.
func (h *home) try(t testing.TB, stdin, name string, args ...string) result {
	t.Helper()
	cmd := h.command(t, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// sampan runs a command that must succeed and returns its output.
func (h *home) sampan(t testing.TB, args ...string) string {
	t.Helper()
	return h.must(t, "sampan", args...)
}

func (h *home) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := h.try(t, "", name, args...)
	if r.code != 0 {
		t.Fatalf("%s %q: exit code %d\n%s%s", name, args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// record sends what sampan says from here on by the witness, too. The daemon has
// to be running, and to stay: it is not started through a witness.
func (h *home) record() { h.watched = true }

// load gives the home the busybox image.
func (h *home) load(t testing.TB) {
	t.Helper()
	h.sampan(t, "load", "-q", "-i", files.busybox)
}

// pid of the home's daemon, 0 when there is none.
func (h *home) pid(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "sampand.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (h *home) stopDaemon(t testing.TB) {
	pid := h.pid(t)
	if pid == 0 || syscall.Kill(pid, syscall.SIGTERM) != nil {
		return
	}
	if !waitGone(pid, 60*time.Second) {
		t.Errorf("the daemon (pid %d) did not end in 60 s after SIGTERM", pid)
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// waitGone waits for the end of a process that is not our child.
func waitGone(pid int, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if syscall.Kill(pid, 0) != nil {
			return true
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && bytes.Contains(b, []byte(") Z ")) {
			return true
		}
	}
	return false
}

// eventually waits for a state that has no event to wait for.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func (h *home) dump(t testing.TB) {
	for _, name := range []string{"sampand.log", "console.log"} {
		b, err := os.ReadFile(filepath.Join(h.dir, name))
		if err != nil {
			continue
		}
		if len(b) > 8<<10 {
			b = b[len(b)-8<<10:]
		}
		t.Logf("%s:\n%s", name, b)
	}
}
