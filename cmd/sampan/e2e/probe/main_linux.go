// Command probe tells what a container's process sees and may do, as a JSON
// object of texts: the sandbox test compares what it says in two runtimes. It is
// the container's only file.
//
//	probe               what is so
//	probe calls TABLE N tries system calls from number N on (for itself)
//	probe sleep         does nothing (for itself)
//	probe crun CASE     runs itself by crun, with /specs/CASE.json
//
// All that it tries is harmless: arguments that no call takes, files opened but
// neither read nor written, what succeeds undone or its own thread's.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// facts by name.
type facts map[string]string

func (f facts) errno(name string, err error) { f[name] = outcome(err) }

// outcome is "ok" or an error's name, like "EPERM".
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	for e := err; e != nil; {
		if n, ok := e.(unix.Errno); ok {
			if name := unix.ErrnoName(n); name != "" {
				return name
			}
			return "errno " + strconv.Itoa(int(n))
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return err.Error()
}

// /proc/self is the first thread: another's mask of signals, while it starts a
// thread or handles a signal, would be told for the one that a container is given.
// Only an init runs in the first thread for certain.
func init() { runtime.LockOSThread() }

func main() {
	f := facts{}
	if len(os.Args) == 1 { // before Go opens more
		f.descriptors()
	}
	switch {
	case len(os.Args) == 4 && os.Args[1] == "calls":
		n, err := strconv.Atoi(os.Args[3])
		if err != nil {
			fail(err)
		}
		tryCalls(os.Args[2], n)
		return
	case len(os.Args) == 2 && os.Args[1] == "sleep":
		time.Sleep(time.Hour)
		return
	case len(os.Args) == 3 && os.Args[1] == "crun":
		fail(crun(os.Args[2]))
	}
	f.process()
	f.mounts()
	f.limits()
	f.cgroup()
	f.devices()
	f.files()
	f.attempts()
	f.calls()
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "probe:", err)
	os.Exit(1)
}
