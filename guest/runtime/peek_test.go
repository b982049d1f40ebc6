package runtime

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var guestExecs = flag.Int("guest.execs", 60, "execs that TestContainerPeek looks at, and 20 times the runs of TestContainerOneProcess; nightly 1000")

// peekName is what the test binary is called in the container that looks.
const peekName = "/peek"

// secret is something in the memory of the agent, which here is the test, and
// in no file: stage 2 is of the same file.
var secret = []byte(rand.Text())

// TestContainerPeek: a container that may look into its processes, and does all
// the time, sees nothing of the agent's memory, and no descriptor that leads to
// the agent's files, while processes are started in it.
func TestContainerPeek(t *testing.T) {
	r := newRuntime(t)
	hidden := make([]byte, len(secret))
	for i := range secret {
		hidden[i] = ^secret[i]
	}
	spec := dockerSpec(t, peekName, hex.EncodeToString(hidden))
	caps := append([]string{"CAP_SYS_PTRACE"}, dockerCaps...)
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: peekName, Type: "bind", Source: "/init.test", Options: []string{"bind"}})
	o := newOutput(t)
	c, err := r.Create(t.Context(), config(t, spec), Stdio{Stdout: o.w, Stderr: o.w})
	o.w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Destroy(t.Context())
	if err := c.Process().Start(); err != nil {
		t.Fatal(err)
	}
	p := *spec.Process
	p.Args, p.Capabilities = []string{"true"}, nil
	for range *guestExecs {
		if err := r.Reserve(); err != nil {
			t.Fatal(err)
		}
		e, err := c.Exec(t.Context(), &p, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Process().Signal(int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	status, err := c.Process().Wait(t.Context())
	out := <-o.text
	t.Log(out)
	var pids, stages int
	if _, scanErr := fmt.Sscanf(out, peekReport, &pids, &stages); err != nil || status.Code != 0 || scanErr != nil || stages == 0 {
		t.Errorf("ended with %v, %v: a report was wanted, of looks at a stage 2, and of nothing found", status, err)
	}
}

// peekReport is what peek writes when it has found nothing.
const peekReport = "looked at %d processes, %d times at a stage 2\n"

// peek is the program of that container. It ends with SIGTERM.
func peek(args []string) int {
	want, err := hex.DecodeString(args[0])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for i := range want {
		want[i] = ^want[i]
	}
	// It must find what it looks for where it is: in itself.
	itself := strings.Join(look("/proc/1", peekName, want), "; ")
	for _, found := range []string{"root by /proc/1/root", "root by /proc/1/cwd", "memory in /proc/1"} {
		if !strings.Contains(itself, found) {
			fmt.Printf("it finds in itself no %s, but %s\n", found, itself)
			return 1
		}
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM)
	pids, stages := map[string]bool{}, 0
	for {
		select {
		case <-end:
			fmt.Printf(peekReport, len(pids), stages)
			return 0
		default:
		}
		list, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range list {
			if dir == "/proc/1" {
				continue
			}
			pids[dir] = true
			if name, _ := os.ReadFile(dir + "/cmdline"); bytes.HasPrefix(name, []byte("sampan-stage2\x00")) {
				stages++
			}
			for _, found := range look(dir, "/init.test", want) {
				fmt.Println("FOUND the agent's " + found)
			}
		}
	}
}

// look searches what a process has open for a way to a root with the file marker,
// and what it has written in memory for want.
func look(dir, marker string, want []byte) (found []string) {
	fds, _ := filepath.Glob(dir + "/fd/*")
	for _, name := range append(fds, dir+"/root", dir+"/cwd") {
		if _, err := os.Stat(name + "/../../../../../.." + marker); err == nil {
			to, _ := os.Readlink(name)
			found = append(found, fmt.Sprintf("root by %s, %s", name, to))
		}
	}
	maps, err := os.ReadFile(dir + "/maps")
	if err != nil {
		return found
	}
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return found
	}
	defer mem.Close()
	const most = 8 << 20 // bytes of one mapping; a Go heap is sparse
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		text := make([]byte, min(to-from, most))
		if n, _ := mem.ReadAt(text, from); bytes.Contains(text[:n], want) {
			found = append(found, fmt.Sprintf("memory in %s, %s", dir, line))
		}
	}
	return found
}
