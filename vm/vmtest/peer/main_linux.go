// Command peer is PID 1 of the machines that vm/vmtest boots: it mounts what
// it needs, loads the modules of the guest bundle, and serves
// vm/vmtest/guest's commands on vsock. With peer.net=ADDRESS/BITS on the
// kernel's command line it gives that to the network card, and serves them over
// TCP as well: vm/vmtest/speed compares the two.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"sampan/vm/vmtest/guest"
)

func main() {
	err := run()
	fmt.Println("peer:", err)
	switch {
	case errors.Is(err, guest.ErrCrash):
		return // the kernel panics without its PID 1
	case errors.Is(err, guest.ErrReset):
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	default:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	fmt.Println("peer: reboot:", err)
}

func run() error {
	for _, m := range []struct{ fstype, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := stay("/sys/devices/system/cpu"); err != nil {
		return err
	}
	addr, err := netArg("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := loadModules("/lib/modules/load", addr.IsValid()); err != nil {
		return err
	}
	if err := onlineCPUs("/sys/devices/system/cpu"); err != nil {
		return err
	}
	if addr.IsValid() {
		if err := cardUp("eth0", addr); err != nil {
			return err
		}
		if err := serveTCP(); err != nil {
			return err
		}
	}
	return guest.Serve(context.Background(), guest.Env{
		Listen: listen,
		Dial:   func(port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) },
	})
}

// stay begins the program again on the first processor and with a timer slack of
// 1 ms, as the product does (guest/boot.Home), if the kernel was told to leave the
// other processors alone.
func stay(root string) error {
	const settled = "PEER_STAYS"
	off, err := os.ReadFile(filepath.Join(root, "offline"))
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(off)) == 0 || os.Getenv(settled) != "" {
		return nil
	}
	runtime.LockOSThread()
	var first unix.CPUSet
	first.Set(0)
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1_000_000, 0, 0, 0); err != nil { // both outlive exec
		return os.NewSyscallError("prctl", err)
	}
	return unix.Exec(os.Args[0], os.Args, append(os.Environ(), settled+"=1"))
}

// onlineCPUs brings up the processors that the kernel was told to leave alone
// (maxcpus=1), as the product does.
func onlineCPUs(root string) error {
	files, err := filepath.Glob(filepath.Join(root, "cpu[0-9]*", "online"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			return fmt.Errorf("bring processor up: %w", err)
		}
	}
	return nil
}

// buffer of each connection, as the agent has it: with the kernel's 256 KiB a
// bulk transfer waits for credit.
const buffer = 1 << 20

// listen is vsock.ListenContextID with larger buffers, which accepted
// connections inherit (vm_sockets(7)); the maximum has to be raised first.
func listen(port uint32) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close() // FileListener duplicates it
	for _, opt := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
		if err := unix.SetsockoptUint64(fd, unix.AF_VSOCK, opt, buffer); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return vsock.FileListener(f)
}

// loadModules loads the first group of the list, which is what a boot needs, or
// both; the second is for networks.
func loadModules(list string, both bool) error {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel may have none
	}
	if err != nil {
		return fmt.Errorf("open list of modules: %w", err)
	}
	defer f.Close()
	begin := time.Now()
	lines := bufio.NewScanner(f)
	for lines.Scan() && (lines.Text() != "" || both) {
		if lines.Text() == "" {
			continue
		}
		if err := loadModule(lines.Text()); err != nil {
			return fmt.Errorf("load %s: %w", lines.Text(), err)
		}
	}
	fmt.Println("peer: modules loaded in", time.Since(begin))
	return lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
