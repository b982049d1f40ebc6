package boot

import (
	"errors"
	"fmt"
	"io/fs"
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

// enableQuota has the kernel patch its scheduler for processor quotas (--cpus)
// while there is one processor: with two, under emulation, the first quota was
// seen to kill the kernel ("int3" in __set_next_task_fair). The patch stays for
// as long as a cgroup with a quota is there, so an empty one is.
func enableQuota(root string) error {
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpu"), 0o644); err != nil {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	dir := filepath.Join(root, "quota")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	// A second in each second (cgroup-v2.rst, cpu.max; microseconds).
	if err := os.WriteFile(filepath.Join(dir, "cpu.max"), []byte("1000000 1000000"), 0o644); err != nil {
		return fmt.Errorf("enable processor quotas: %w", err)
	}
	return nil
}

// cpuRoot is where the kernel shows processors.
const cpuRoot = "/sys/devices/system/cpu"
