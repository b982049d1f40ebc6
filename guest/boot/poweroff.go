package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout bounds the wait for processes that were killed.
const killTimeout = 3 * time.Second

// sealTimeout bounds the wait for the data disk's last writer.
const sealTimeout = 5 * time.Second

// PowerOff kills what still runs, unmounts the data disk and turns the machine
// off. It returns only if the kernel refuses.
func PowerOff(log *slog.Logger) error {
	if err := killAll(); err != nil {
		log.Warn(err.Error())
	}
	unix.Sync()
	// An overlay holds the file system of its upper directory even when that
	// isn't mounted any more.
	if err := unmountBelow(RunDir); err != nil {
		log.Warn(err.Error())
	}
	// Read-only first: this leaves the disk clean even if something holds it.
	err := sealData()
	if err == nil {
		err = unix.Unmount(DataDir, 0)
	}
	if err != nil && err != unix.EINVAL { // EINVAL: not mounted
		log.Warn("unmount the data disk: " + err.Error())
	}
	unix.Sync()
	return os.NewSyscallError("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// sealData makes the data disk read-only. The agent itself may still be
// deleting what was removed; the next boot goes on with that.
func sealData() error {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Mount("", DataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		if err != unix.EBUSY || time.Since(begin) > sealTimeout {
			return err
		}
	}
}

// killAll kills every process but this one, and waits until its children, and
// with them the containers, are gone.
func killAll() error {
	if err := unix.Kill(-1, unix.SIGKILL); err != nil {
		if err == unix.ESRCH {
			return nil
		}
		return os.NewSyscallError("kill", err)
	}
	deadline := time.Now().Add(killTimeout)
	for time.Now().Before(deadline) {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD:
			return nil
		case pid == 0:
			time.Sleep(5 * time.Millisecond) // there is no event for "all"
		}
	}
	return errors.New("some processes can't be killed")
}

// unmountBelow unmounts everything below dir, the newest mount first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mountsBelow(string(b), dir)) {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mounts below dir, oldest first (proc(5), mountinfo:
// the fifth field is the mount point).
func mountsBelow(mountinfo, dir string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) >= 5 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, unescape.Replace(f[4]))
		}
	}
	return out
}

// unescape undoes how the kernel writes names in mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
