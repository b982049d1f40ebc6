package qemu

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sampan/vm"
)

// tick is the unit of processor time in /proc: USER_HZ, which is 100 on every
// architecture that we run on.
const tick = time.Second / 100

// errNoMemory: the process has none any more, it is about to be gone.
var errNoMemory = errors.New("it has no memory")

// parseStat takes processor time and threads from /proc/PID/stat (proc(5)):
// "PID (NAME) STATE …", where NAME may hold anything, brackets too.
func parseStat(text string, u *vm.Usage) error {
	const utime, stime, threads = 14 - 3, 15 - 3, 20 - 3 // the third field follows the name
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return fmt.Errorf("no name in %q", text)
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) <= threads {
		return fmt.Errorf("%d fields after the name, want more than %d", len(fields), threads)
	}
	var numbers [3]int64
	for i, at := range []int{utime, stime, threads} {
		n, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("field %d is %q, want a number", at+3, fields[at])
		}
		numbers[i] = n
	}
	u.CPU, u.Threads = time.Duration(numbers[0]+numbers[1])*tick, int(numbers[2])
	return nil
}

// parseStatus takes the resident memory from /proc/PID/status. A process that
// is ending has no such line.
func parseStatus(text string, u *vm.Usage) error {
	value, ok := procLine(text, "VmRSS")
	if !ok {
		return errNoMemory
	}
	number, ok := strings.CutSuffix(value, " kB")
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n < 0 || n > 1<<50 {
		return fmt.Errorf("VmRSS is %q, want a number of kB", value)
	}
	u.Memory = n << 10
	return nil
}

// parseIO reads /proc/PID/io.
func parseIO(text string) (*vm.Storage, error) {
	s := new(vm.Storage)
	for name, to := range map[string]*int64{"read_bytes": &s.Read, "write_bytes": &s.Written} {
		value, ok := procLine(text, name)
		if !ok {
			return nil, fmt.Errorf("no %s", name)
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s is %q, want a number", name, value)
		}
		*to = n
	}
	return s, nil
}

// procLine is the value of a line "NAME: VALUE".
func procLine(text, name string) (string, bool) {
	for line := range strings.Lines(text) {
		if n, value, ok := strings.Cut(line, ":"); ok && n == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}
