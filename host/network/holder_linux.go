package network

import (
	"bufio"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpListen is the state of a listening socket in /proc/net/tcp; a UDP socket
// that has no peer is in udpOpen.
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

// holder describes the process that holds a port, as far as this user may
// know; "" is not at all.
func holder(proto string, port uint16) string {
	for _, name := range []string{proto, proto + "6"} {
		if inode, uid := listener("/proc/net/"+name, proto, port); inode != "" {
			return owner(inode, uid)
		}
	}
	return ""
}

// listener finds the socket that listens on a port in a table of proc(5).
func listener(table, proto string, port uint16) (inode, uid string) {
	f, err := os.Open(table)
	if err != nil {
		return "", ""
	}
	defer f.Close()
	state := tcpListen
	if proto == "udp" {
		state = udpOpen
	}
	suffix := fmt.Sprintf(":%04X", port)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// sl local_address rem_address st queues tr:tm->when retrnsmt uid timeout inode
		if col := strings.Fields(sc.Text()); len(col) > 9 && strings.HasSuffix(col[1], suffix) && col[3] == state {
			return col[9], col[7]
		}
	}
	return "", ""
}

// owner names the process that has a socket open, or, when no process of ours
// has, the user it belongs to.
func owner(inode, uid string) string {
	want := "socket:[" + inode + "]"
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err != nil || to != want {
				continue
			}
			pid := filepath.Base(dir)
			if name, err := os.ReadFile(dir + "/comm"); err == nil {
				return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
			}
			return "process " + pid
		}
	}
	if u, err := user.LookupId(uid); err == nil {
		return "a process of user " + u.Username
	}
	return "a process of user " + uid
}

// allowPrivileged is how to let everybody listen on a low port.
func allowPrivileged(port uint16) string {
	return " or run: sudo sysctl net.ipv4.ip_unprivileged_port_start=" + strconv.Itoa(int(port))
}
