package main

import (
	"bufio"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// int80 makes a call as 32-bit programs do. Its result is negative for an error.
func int80(nr, arg uint32) int32

// lastCall is higher than any number that the kernel knows.
const lastCall = 480

// table is one of the three ways to call the kernel.
type table struct {
	// skip are calls that end, suspend or confuse the process if they work.
	skip []int
	// zero are calls that are harmless with zeros, not with ones.
	zero []int
	call func(nr int, arg uintptr) error
}

var skip64 = []int{
	15 /* rt_sigreturn */, 34 /* pause */, 37 /* alarm */, 57 /* fork */, 58 /* vfork */, 60 /* exit */, 95, /* umask */
	112 /* setsid */, 153 /* vhangup */, 162 /* sync */, 231, /* exit_group */
}

var tables = map[string]table{
	"64": {skip64, []int{29, 30, 64, 68}, func(nr int, arg uintptr) error { return raw(uintptr(nr), arg) }},
	"x32": {append(skip64, 513 /* rt_sigreturn */), []int{29, 30, 64, 68}, func(nr int, arg uintptr) error {
		return raw(0x40000000|uintptr(nr), arg)
	}},
	"32": {
		[]int{
			1 /* exit */, 2 /* fork */, 27 /* alarm */, 29 /* pause */, 34 /* nice */, 36 /* sync */, 60 /* umask */, 66 /* setsid */, 69 /* ssetmask */, 72, /* sigsuspend */
			111 /* vhangup */, 119 /* sigreturn */, 173 /* rt_sigreturn */, 190 /* vfork */, 252, /* exit_group */
		},
		[]int{393, 395, 399},
		func(nr int, arg uintptr) error {
			if n := int80(uint32(nr), uint32(arg)); n < 0 && n > -4096 {
				return unix.Errno(-n)
			}
			return nil
		},
	},
}

func raw(nr, arg uintptr) error {
	_, _, errno := unix.RawSyscall6(nr, arg, arg, arg, arg, arg, arg)
	return errnoError(errno)
}

// tryCalls prints each number and what came of it.
func tryCalls(name string, from int) {
	runtime.LockOSThread()
	t := tables[name]
	for nr := from; nr < lastCall; nr++ {
		if contains(t.skip, nr) {
			continue
		}
		arg := ^uintptr(0)
		if contains(t.zero, nr) {
			arg = 0
		}
		fmt.Println(nr, outcome(t.call(nr, arg)))
	}
}

func contains(list []int, n int) bool {
	for _, v := range list {
		if v == n {
			return true
		}
	}
	return false
}

// calls tries every number, in processes that may die of it.
func (f facts) calls() {
	for name, t := range tables {
		for next := 0; next < lastCall; {
			said := f.callsFrom(name, next)
			for nr, what := range said {
				f[fmt.Sprintf("call %s %d", name, nr)] = what
				next = max(next, nr+1)
			}
			for contains(t.skip, next) {
				next++
			}
			if next < lastCall {
				f[fmt.Sprintf("call %s %d", name, next)] = "killed"
				next++
			}
		}
	}
}

// callsFrom is what a process could tell before its end.
func (f facts) callsFrom(name string, from int) map[int]string {
	said := map[int]string{}
	cmd := exec.Command("/proc/self/exe", "calls", name, fmt.Sprint(from))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fail(err)
	}
	limit := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer limit.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		nr, what, ok := strings.Cut(lines.Text(), " ")
		if ok {
			said[atoi(nr)] = what
		}
	}
	cmd.Wait()
	return said
}
