package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sampan/proto"
)

const (
	diskFormatted = "formatted"
	diskClean     = "clean"
	diskRepaired  = "repaired"
	diskNone      = "none"
)

// toolTimeout bounds mke2fs and e2fsck. A check of a huge, damaged disk takes
// long; the host's deadline for the boot is its own affair.
const toolTimeout = 10 * time.Minute

// dataOptions are the data disk's. The reserved blocks are for whoever has
// CAP_SYS_RESOURCE, as the agent has, and for one user: not for uid 0, which
// most containers run as.
const (
	dataOptions = commonOptions + ",resuid=4294967294"
	lentOptions = commonOptions + ",resuid=0"
	// Block bitmaps are read when they are needed, not all of them at each boot.
	commonOptions = "discard,errors=remount-ro,no_prefetch_block_bitmaps"
)

// LendReserve lets uid 0 have the data disk's reserved blocks, or not any more.
// overlayfs needs that to make a mount point on a full disk: it never uses
// CAP_SYS_RESOURCE, whoever mounted it.
func LendReserve(lend bool) error {
	options := dataOptions
	if lend {
		options = lentOptions
	}
	if err := unix.Mount("", DataDir, "", unix.MS_REMOUNT, options); err != nil {
		return fmt.Errorf("data disk: remount with %s: %w", options, err)
	}
	return nil
}

// toolDirs is where the bundle may have put its tools.
var toolDirs = []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"}

// mountData mounts the data disk, and says what was done to it before.
func mountData(log *slog.Logger) (string, error) {
	dev, err := findDisk("/sys/block", proto.DataDiskSerial)
	if err != nil {
		return "", err
	}
	if dev == "" {
		log.Warn("no data disk: writable layers and volumes are kept in memory")
		return diskNone, mountAll([]mount{{source: "data", target: DataDir, fstype: "tmpfs", data: "mode=0711"}})
	}
	done, err := prepareDisk(dev)
	if err != nil {
		return "", fmt.Errorf("data disk: %w", err)
	}
	if err := unix.Mount(dev, DataDir, "ext4", 0, dataOptions); err != nil {
		return "", fmt.Errorf("data disk: mount %s: %w", dev, err)
	}
	if done == diskRepaired {
		if err := os.WriteFile(untrimmed, nil, 0o600); err != nil {
			log.Warn("what is free on the data disk is not given back to the host: " + err.Error())
		}
	}
	if err := grow(dev, DataDir); err != nil {
		log.Warn("the data disk keeps its old size: " + err.Error())
	}
	if err := os.Chmod(DataDir, 0o711); err != nil {
		return "", fmt.Errorf("data disk: %w", err)
	}
	return done, nil
}

// resizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64) (uapi/linux/ext4.h): it
// gives a mounted file system so many blocks.
const resizeFS = 0x40086610

// grow has the file system fill a disk that has become larger.
func grow(dev, dir string) error {
	d, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer d.Close()
	size, err := d.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("size of %s: %w", dev, err)
	}
	sb, err := readSuperblock(dev)
	if err != nil {
		return err
	}
	blocks := uint64(size) / sb.blockSize()
	if blocks <= sb.blocks() {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow ext4 from %d to %d blocks: %w", sb.blocks(), blocks, errno)
	}
	return nil
}

// findDisk returns the virtio-blk device with a serial number, or "".
func findDisk(sysBlock, serial string) (string, error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, "*", "serial"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		if strings.TrimRight(string(b), "\x00\n ") == serial {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(f))), nil
		}
	}
	return "", nil
}

// prepareDisk makes sure that dev holds a sound ext4 file system.
func prepareDisk(dev string) (string, error) {
	sb, err := readSuperblock(dev)
	if err != nil {
		return "", err
	}
	switch sb.state() {
	case stateEmpty:
		return diskFormatted, format(dev)
	case stateForeign:
		return "", errors.New("holds something that is not ext4; not touched")
	case stateClean:
		return diskClean, nil
	}
	err = repair(dev)
	if err != nil && sb.neverMounted() {
		// Formatting was cut short. Nothing can be lost.
		return diskFormatted, format(dev)
	}
	return diskRepaired, err
}

func readSuperblock(dev string) (superblock, error) {
	f, err := os.Open(dev)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, superblockEnd)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", dev, err)
	}
	return b, nil
}

// format makes the file system. Tables are initialised later, in the
// background; some blocks are kept for root, so that the agent can still stop
// and remove when containers have filled the disk.
func format(dev string) error {
	// No orphan file: it is for many processors that truncate at once, and each
	// mount reads all of its 512 blocks, one after the other.
	out, _, err := tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^orphan_file", "-m", "1", "-L", proto.DataDiskSerial,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", dev)
	if err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, out)
	}
	return nil
}

// repair checks the file system without asking (e2fsck(8), exit status: 1
// corrected, 2 corrected and wants a reboot because it was mounted, 4 left
// uncorrected).
func repair(dev string) error {
	out, code, err := tool("e2fsck", "-p", dev)
	switch {
	case code == 0 || code == 1:
		return nil
	case err == nil:
		err = fmt.Errorf("exit status %d", code)
	}
	return fmt.Errorf("e2fsck can't repair it by itself: %w\n%s", err, out)
}

// tool runs a program of the bundle. code is its exit status, or -1.
func tool(name string, args ...string) (out []byte, code int, err error) {
	path := ""
	for _, d := range toolDirs {
		if unix.Access(filepath.Join(d, name), unix.X_OK) == nil {
			path = filepath.Join(d, name)
			break
		}
	}
	if path == "" {
		return nil, -1, errors.New("not in the guest bundle")
	}
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + strings.Join(toolDirs, ":")}
	out, err = cmd.CombinedOutput()
	return bytes.TrimSpace(out), cmd.ProcessState.ExitCode(), err
}
