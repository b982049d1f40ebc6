package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"sampan/vm"
)

// Usage implements vm.Meter.
func (m *machine) Usage() (vm.Usage, error) {
	u, err := usageOf("/proc/" + strconv.Itoa(m.Pid()))
	select {
	case <-m.proc.done: // what was read may be of another process by now
		return vm.Usage{}, errors.New("usage of QEMU: it has ended")
	default:
	}
	if err != nil {
		return vm.Usage{}, fmt.Errorf("usage of QEMU: %w", err)
	}
	return u, nil
}

// usageOf reads a process's folder in /proc.
func usageOf(dir string) (vm.Usage, error) {
	var u vm.Usage
	for name, parse := range map[string]func(string, *vm.Usage) error{"stat": parseStat, "status": parseStatus} {
		text, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			return u, err
		}
		if err := parse(string(text), &u); err != nil {
			return u, fmt.Errorf("%s/%s: %w", dir, name, err)
		}
	}
	text, err := os.ReadFile(dir + "/io")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return u, nil // a kernel that doesn't count it, or a sandbox that hides it
	}
	if err != nil {
		return u, err
	}
	if u.Storage, err = parseIO(string(text)); err != nil {
		return u, fmt.Errorf("%s/io: %w", dir, err)
	}
	return u, nil
}
