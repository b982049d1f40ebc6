package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFiles is the agent's limit of open files: one per stream and more.
const maxFiles = 1 << 20

// sysctl is one setting of the kernel; the name's dots are slashes.
type sysctl struct {
	name, value string
	optional    bool // the kernel may lack it
}

// sysctls are set before anything runs. Where they differ from the kernel's
// defaults, a common image needs it, or a distribution sets it too.
var sysctls = []sysctl{
	// A crash ends the machine, and the host boots another one.
	{name: "kernel/panic", value: "-1"},
	{name: "kernel/panic_on_oops", value: "1"},
	{name: "kernel/printk", value: "4 4 1 4"},
	{name: "kernel/kptr_restrict", value: "1"},
	{name: "kernel/pid_max", value: "4194304"},
	{name: "kernel/keys/maxkeys", value: "20000", optional: true},
	{name: "kernel/keys/maxbytes", value: "2000000", optional: true},
	{name: "fs/protected_hardlinks", value: "1"},
	{name: "fs/protected_symlinks", value: "1"},
	{name: "fs/inotify/max_user_watches", value: "1048576"},
	{name: "fs/inotify/max_user_instances", value: "8192"},
	{name: "fs/aio-max-nr", value: "1048576", optional: true},
	{name: "vm/overcommit_memory", value: "1"},
	{name: "vm/max_map_count", value: "1048576"},
	{name: "user/max_user_namespaces", value: "65536", optional: true},
	{name: "net/ipv4/ip_forward", value: "1"},
	{name: "net/ipv4/ip_unprivileged_port_start", value: "0"},
	{name: "net/ipv4/ping_group_range", value: "0 2147483647"},
	// What stays within a bridge is no business of the firewall's, which lets through
	// what is for the outside. Where the kernel has br_netfilter built in, it would be.
	{name: "net/bridge/bridge-nf-call-iptables", value: "0", optional: true},
	{name: "net/bridge/bridge-nf-call-ip6tables", value: "0", optional: true},
	{name: "net/bridge/bridge-nf-call-arptables", value: "0", optional: true},
}

// lateSysctls belong to modules that are loaded late.
var lateSysctls = []sysctl{
	{name: "net/netfilter/nf_conntrack_max", value: "262144", optional: true},
}

func setSysctls(root string, table []sysctl) error {
	for _, s := range table {
		err := os.WriteFile(filepath.Join(root, s.name), []byte(s.value), 0o644)
		if err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("set %s=%s: %w", strings.ReplaceAll(s.name, "/", "."), s.value, err)
		}
	}
	return nil
}

// loopbackUp brings the guest's loopback interface up; the kernel gives it its
// addresses.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
