package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The test binary is sampand when it is called so.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "sampand" {
		os.Exit(standIn())
	}
	cobra.EnableCommandSorting = false
	os.Exit(m.Run())
}

// standIn does as sampand would: it serves, or fails in the way that is asked
// for. It ends by itself after a while.
func standIn() int {
	ready := os.NewFile(3, "ready")
	if len(os.Args) != 3 || os.Args[1] != "--ready-fd" || os.Args[2] != "3" {
		fmt.Fprintln(ready, "wrong arguments:", os.Args)
		return 1
	}
	home := os.Getenv("SAMPAN_HOME")
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		fmt.Fprintln(ready, "leads no session")
		return 1
	}
	switch os.Getenv("STAND_IN") {
	case "fails":
		fmt.Fprintln(ready, "no QEMU: run `apt install qemu-system-x86`")
		return 1
	case "dies":
		fmt.Fprintln(os.Stderr, "panic: what a pity")
		return 2
	case "hangs":
		time.Sleep(2 * time.Second)
		return 0
	}
	lock, err := os.OpenFile(filepath.Join(home, "sampand.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		fmt.Fprintln(ready, err)
		return 1
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if c, err := net.Dial("unix", filepath.Join(home, "docker.sock")); err == nil {
				c.Close()
				fmt.Fprintln(ready, "ok") // another one serves
				return 0
			}
		}
		return 1
	}
	fmt.Fprintln(os.Stderr, "one more daemon") // the log
	_ = os.Remove(filepath.Join(home, "docker.sock"))
	ln, err := net.Listen("unix", filepath.Join(home, "docker.sock"))
	if err != nil {
		fmt.Fprintln(ready, err)
		return 1
	}
	if err := os.WriteFile(filepath.Join(home, "sampand.pid"), fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		fmt.Fprintln(ready, err)
		return 1
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.50")
		w.Header().Set("Sampan-Build", os.Getenv("STAND_IN_BUILD"))
	})
	mux.HandleFunc("/v1.50/containers/json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") })
	mux.HandleFunc("/sampan/machine/stop", func(w http.ResponseWriter, _ *http.Request) {})
	srv := &http.Server{Handler: mux}
	time.AfterFunc(20*time.Second, func() { srv.Close() })
	fmt.Fprintln(ready, "ok")
	ready.Close()
	_ = srv.Serve(ln)
	return 0
}

// daemonHome prepares a home without a daemon, and a PATH with the stand-in.
func daemonHome(t *testing.T, mode string) (home string, sampan func(args ...string) result) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sampan-cli-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Symlink(exe, filepath.Join(dir, "sampand")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("STAND_IN", mode)
	home = filepath.Join(dir, "home")
	return home, func(args ...string) result {
		var out, errOut bytes.Buffer
		a := newApp(strings.NewReader(""), &out, &errOut, func(k string) string { return map[string]string{"SAMPAN_HOME": home}[k] })
		a.startTimeout = time.Second
		if mode == "" {
			a.startTimeout = 10 * time.Second
		}
		code := run(context.Background(), args, a)
		return result{code, out.String(), errOut.String()}
	}
}

// Several that start at once share one daemon.
func TestDaemonOnDemand(t *testing.T) {
	home, sampan := daemonHome(t, "")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if res := sampan("ps", "-q"); res.code != 0 || res.err != "" {
				t.Errorf("%+v", res)
			}
		})
	}
	wg.Wait()
	log, err := os.ReadFile(filepath.Join(home, "sampand.log"))
	if err != nil || string(log) != "one more daemon\n" {
		t.Errorf("log %q, %v", log, err)
	}
	if info, err := os.Stat(home); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("home: %v, %v", info, err)
	}
	if res := sampan("machine", "stop", "--daemon"); res.code != 0 || res.err != "" {
		t.Errorf("%+v", res)
	}
	if conn, err := net.Dial("unix", filepath.Join(home, "docker.sock")); err == nil {
		conn.Close()
		t.Error("the daemon still serves")
	}
	// Nobody is started to be stopped, or asked.
	if res := sampan("machine", "stop"); res.code != 0 {
		t.Errorf("%+v", res)
	}
	if res := sampan("machine", "status"); res.code != 0 || res.out != "State:      stopped\n" {
		t.Errorf("%+v", res)
	}
	if res := sampan("machine", "status", "--json"); res.out != "{\n    \"state\": \"stopped\"\n}\n" {
		t.Errorf("%+v", res)
	}
}

// What sampan has inherited, such as the lock of the script that calls it, is
// not the daemon's.
func TestDaemonInheritsNothing(t *testing.T) {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil { // not close-on-exec, as a shell's
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fds[0]), "pipe")
	defer r.Close()
	_, sampan := daemonHome(t, "")
	if res := sampan("ps", "-q"); res.code != 0 {
		t.Errorf("%+v", res)
	}
	syscall.Close(fds[1])
	r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d, %v: want the end, for nobody has the other end", n, err)
	}
	if res := sampan("machine", "stop", "--daemon"); res.code != 0 {
		t.Errorf("%+v", res)
	}
}

func TestDaemonOfAnotherBuild(t *testing.T) {
	t.Setenv("STAND_IN_BUILD", "v0-other")
	_, sampan := daemonHome(t, "")
	if res := sampan("ps", "-q"); res.code != 0 || !strings.HasPrefix(res.err, "WARNING: sampand is of build v0-other, sampan of unknown: ") {
		t.Errorf("%+v", res)
	}
	if res := sampan("machine", "stop", "--daemon"); res.code != 0 {
		t.Errorf("%+v", res)
	}
}

func TestDaemonFailures(t *testing.T) {
	tests := []struct{ mode, want string }{
		{"fails", "cannot start sampand: no QEMU: run `apt install qemu-system-x86`\n"},
		{"dies", "cannot start sampand: sampand ended at its start; the end of HOME/sampand.log:\npanic: what a pity\n"},
		{"hangs", "cannot start sampand: sampand does not serve after 1s\n"},
	}
	for _, tt := range tests {
		home, sampan := daemonHome(t, tt.mode)
		if res := sampan("ps"); res.code != 1 || strings.ReplaceAll(res.err, home, "HOME") != tt.want {
			t.Errorf("%s: %+v", tt.mode, res)
		}
		if res := sampan("run", "x"); res.code != 125 || !strings.HasPrefix(res.err, "sampan: cannot start sampand: ") {
			t.Errorf("%s: %+v", tt.mode, res)
		}
	}
	_, sampan := daemonHome(t, "")
	t.Setenv("PATH", "/nonexistent")
	if res := sampan("ps"); res.code != 1 || !strings.Contains(res.err, "neither beside sampan nor in PATH") {
		t.Errorf("%+v", res)
	}
}

func TestHome(t *testing.T) {
	tests := []struct {
		env        map[string]string
		want, fail string
	}{
		{map[string]string{"HOME": "/home/u"}, "/home/u/.sampan", ""},
		{map[string]string{"HOME": "/home/u", "SAMPAN_HOME": "/s"}, "/s", ""},
		{map[string]string{}, "", "neither SAMPAN_HOME nor HOME is set"},
		{map[string]string{"SAMPAN_HOME": "/" + strings.Repeat("x", 100)}, "", "choose a shorter one"},
	}
	for _, tt := range tests {
		a := newApp(nil, nil, nil, func(k string) string { return tt.env[k] })
		got, err := a.home()
		if got != tt.want || tt.fail == "" && err != nil || tt.fail != "" && (err == nil || !strings.Contains(err.Error(), tt.fail)) {
			t.Errorf("%v: %q, %v", tt.env, got, err)
		}
	}
}
