package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// onlineCPUs brings up the processors that the kernel was told to leave alone
// (maxcpus=1, which vm/qemu asks for under emulation: with one processor the
// kernel patches its own code in peace, with two one boot in thirty died of it).
func onlineCPUs(root string) error {
	files, err := filepath.Glob(filepath.Join(root, "cpu[0-9]*", "online"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		state, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(state)) == "0" {
			err = os.WriteFile(f, []byte("1"), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("bring processor up: %w", err))
		}
	}
	return errors.Join(errs...)
}

// cpuRoot is where the kernel shows processors.
const cpuRoot = "/sys/devices/system/cpu"
