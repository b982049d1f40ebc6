package kernel

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// option is one of the kernel's configuration, and what would fail without it.
type option struct{ name, why string }

// required is what the guest needs of any kernel's configuration, built in or
// as a module that the bundle carries. It is checked when a bundle is made, not
// when a container fails.
func required() []option {
	return []option{
		// The machine's devices.
		{"VIRTIO_PCI", "every device of the machine is one of virtio on PCI"},
		{"VIRTIO_BLK", "the data disk"},
		{"VIRTIO_NET", "the way out"},
		{"VIRTIO_CONSOLE", "a console that does not go byte by byte"},
		{"VIRTIO_BALLOON", "memory goes back to the host"},
		{"PAGE_REPORTING", "free pages go back to the host by themselves"},
		{"COMPACTION", "free pages come in blocks that go back to the host"},
		{"HW_RANDOM_VIRTIO", "randomness from the host, at the first moment"},
		{"VSOCKETS", "how host and guest talk"},
		{"VIRTIO_VSOCKETS", "how host and guest talk"},

		// File systems.
		{"DEVTMPFS", "/dev"},
		{"UNIX98_PTYS", "terminals"},
		{"TMPFS", "/run, /dev/shm, tmpfs mounts"},
		{"TMPFS_XATTR", "capabilities of files, also in tmpfs"},
		{"TMPFS_POSIX_ACL", "access lists, also in tmpfs"},
		{"FUSE_FS", "shares; FUSE in containers"},
		{"VIRTIO_FS", "shares"},
		{"EROFS_FS", "image layers"},
		{"EROFS_FS_XATTR", "capabilities of files in images, opaque directories"},
		{"EROFS_FS_BACKED_BY_FILE", "layers are mounted as files of a share, without a loop device"},
		{"EROFS_FS_ZIP", "compressed layers"},
		{"OVERLAY_FS", "layers become a root"},
		{"EXT4_FS", "the data disk"},
		{"EXT4_FS_POSIX_ACL", "access lists in containers and volumes"},
		{"INOTIFY_USER", "programs that watch files"},
		{"BLK_DEV_INITRD", "the guest's root is the initramfs"},

		// What a container is made of.
		{"NAMESPACES", "containers"},
		{"UTS_NS", "a container's host name"},
		{"IPC_NS", "a container's shared memory and message queues"},
		{"PID_NS", "a container's processes"},
		{"NET_NS", "a container's network"},
		{"USER_NS", "sandboxes of browsers, rootless builds in containers"},
		{"SYSVIPC", "databases' shared memory"},
		{"POSIX_MQUEUE", "/dev/mqueue"},
		{"SECCOMP", "the filter of system calls"},
		{"SECCOMP_FILTER", "the filter of system calls"},
		{"KEYS", "keyrings"},
		{"BINFMT_MISC", "programs of other architectures"},

		// Limits: cgroup v2 with every controller that Docker's options set.
		{"CGROUPS", "limits, accounts, and the end of all of a container's processes"},
		{"MEMCG", "--memory"},
		{"CPUSETS", "--cpuset-cpus"},
		{"FAIR_GROUP_SCHED", "--cpu-shares"},
		{"CFS_BANDWIDTH", "--cpus"},
		{"CGROUP_PIDS", "--pids-limit"},
		{"BLK_CGROUP", "--blkio-weight and device rates"},
		{"BLK_DEV_THROTTLING", "--device-read-bps and its like"},
		{"CGROUP_HUGETLB", "accounts of huge pages"},
		{"CGROUP_FREEZER", "pause"},
		{"CGROUP_BPF", "which devices a container may open"},
		{"BPF_SYSCALL", "which devices a container may open"},
		{"PSI", "pressure, by which memory is given back in time"},

		// Networks.
		{"UNIX", "sockets"},
		{"PACKET", "tcpdump, DHCP clients"},
		{"INET", "IPv4"},
		{"IPV6", "IPv6"},
		{"BRIDGE", "containers' networks"},
		{"VETH", "containers' cards"},
		{"DUMMY", "tests of networks"},
		{"TUN", "VPN clients in containers"},
		{"NF_TABLES", "the firewall"},
		{"NF_TABLES_INET", "one table for IPv4 and IPv6"},
		{"NF_TABLES_IPV4", "the firewall"},
		{"NF_TABLES_IPV6", "the firewall"},
		{"NF_CONNTRACK", "connections that the firewall knows"},
		{"NF_NAT", "the way out of containers' networks"},
		{"NFT_CT", "connections that the firewall knows"},
		{"NFT_NAT", "the way out of containers' networks"},
		{"NFT_MASQ", "the way out of containers' networks"},
	}
}

// ReadConfig reads a kernel's configuration, lines of CONFIG_NAME=VALUE, and
// returns the values (y or m) of what the guest requires. Its error names each
// option that is off, and what for it is wanted.
func ReadConfig(r io.Reader) (map[string]string, error) {
	on := map[string]string{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if key, value, ok := strings.Cut(sc.Text(), "="); ok && (value == "y" || value == "m") {
			on[strings.TrimPrefix(key, "CONFIG_")] = value
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("kernel configuration: %w", err)
	}
	values := map[string]string{}
	var off []string
	for _, o := range required() {
		if on[o.name] == "" {
			off = append(off, fmt.Sprintf("%s (%s)", o.name, o.why))
		}
		values[o.name] = on[o.name]
	}
	if len(off) > 0 {
		return nil, fmt.Errorf("kernel configuration: required options are off: %s", strings.Join(off, ", "))
	}
	return values, nil
}
