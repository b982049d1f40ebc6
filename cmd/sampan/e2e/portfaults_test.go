package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// failures has each part of a published port fail in earnest, which is told,
// and the port is there again.
func (p peer) failures(t *testing.T) {
	t.Run("guest", p.guestFails)
	t.Run("descriptors", p.descriptorsEnd)
	t.Run("listener", p.listenerFails)
	p.works(t)
	if out := p.h.sampan(t, "machine", "status"); strings.Contains(out, fails) {
		t.Errorf("after the failures: %s", out)
	}
}

// fails is in each warning of a port that does.
const fails = " does not work since "

// works waits until the port carries a connection.
func (p peer) works(t *testing.T) {
	t.Helper()
	var err error
	eventually(t, 30*time.Second, "the port works again", func() bool { err = p.once(0); return err == nil })
}

// tells waits until a log of the home has more of some words than before.
func (p peer) tells(t *testing.T, name, words string, before int) {
	t.Helper()
	eventually(t, 10*time.Second, name+" tells: "+words, func() bool { return p.told(t, name, words) > before })
}

func (p peer) told(t *testing.T, name, words string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.h.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), words)
}

// guestFails ends the threads of the guest's forwarder: the root of the guest
// can.
func (p peer) guestFails(t *testing.T) {
	const words = "the forwarder is started again"
	before := p.told(t, "console.log", words)
	c := p.dial(t, "7000/tcp")
	io.WriteString(c, "x")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.h.sampan(t, "run", "--rm", "--privileged", "--pid", "host", "-v", filepath.Join(files.bin, "peer")+":/peer:ro", "busybox", "/peer", "fell", "1")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that was carried reads %v, want a reset", err)
	}
	if err := p.once(1); err != nil {
		t.Errorf("the next connection: %v", err)
	}
	p.tells(t, "console.log", words, before)
}

// descriptorsEnd leaves the daemon no descriptor for the next connections.
func (p peer) descriptorsEnd(t *testing.T) {
	pid := p.h.pid(t)
	status := p.status(t) // by a connection from before
	status()
	before := p.told(t, "sampand.log", "published port works again")
	used := descriptors(t, pid)
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	// New descriptors take the lowest number that is free; those above the limit
	// stay open.
	free := 0
	for free < len(used) && used[free] == free {
		free++
	}
	least := unix.Rlimit{Cur: uint64(free), Max: was.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &least, nil); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil) }
	defer restore()
	var warnings []string
	eventually(t, 10*time.Second, "the port's failure is told", func() bool {
		p.dial(t, "7000/tcp") // the system takes it, whatever becomes of it
		warnings = status()
		return len(warnings) > 0
	})
	_, port, _ := net.SplitHostPort(p.at["7000/tcp"])
	if want := ":" + port + "/tcp of container peer" + fails; len(warnings) != 1 || !strings.Contains(warnings[0], want) || !strings.Contains(warnings[0], "too many open files") {
		t.Errorf("warnings %q, want one with %q", warnings, want)
	}
	restore()
	p.works(t)
	p.tells(t, "sampand.log", "published port works again", before)
	if got := status(); len(got) != 0 {
		t.Errorf("afterwards: %q", got)
	}
}

// status returns how to ask for the machine's warnings of ports with one and the
// same connection.
func (p peer) status(t *testing.T) func() []string {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(p.h.dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	client := &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }},
	}
	return func() []string {
		t.Helper()
		resp, err := client.Get("http://sampan/sampan/machine")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var s struct {
			Warnings []string `json:"warnings"`
		}
		b, err := io.ReadAll(resp.Body)
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("machine status: %s, %v", b, err)
		}
		return slices.DeleteFunc(s.Warnings, func(w string) bool { return !strings.Contains(w, fails) })
	}
}

// descriptors that a process has open, in order.
func descriptors(t *testing.T, pid int) []int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var nums []int
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		nums = append(nums, n)
	}
	slices.Sort(nums)
	return nums
}

// listenerFails ends the daemon's socket that listens, from outside.
func (p peer) listenerFails(t *testing.T) {
	pid := p.h.pid(t)
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(handle)
	_, port, _ := net.SplitHostPort(p.at["7000/tcp"])
	before := p.told(t, "sampand.log", "published port works again")
	found := false
	for _, n := range descriptors(t, pid) {
		fd, err := unix.PidfdGetfd(handle, n, 0)
		if errors.Is(err, unix.EPERM) { // Yama
			t.Log("LEFT OUT: this system lets nobody but root have another process's sockets")
			return
		}
		if err != nil {
			continue // closed meanwhile
		}
		if listens(fd, port) {
			found = true
			if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
				t.Error(err)
			}
		}
		unix.Close(fd)
	}
	if !found {
		t.Fatalf("the daemon has no socket that listens on port %s", port)
	}
	p.tells(t, "sampand.log", "published port works again", before)
	p.works(t)
}

// listens says whether a descriptor is a socket that listens on a TCP port.
func listens(fd int, port string) bool {
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
		return false
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return strconv.Itoa(at.Port) == port
	case *unix.SockaddrInet6:
		return strconv.Itoa(at.Port) == port
	}
	return false
}
