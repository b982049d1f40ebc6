package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// userNet is QEMU's user-mode networking in the product's machine, beside the
// product's own: what forwarding a port costs without Sampan. The card is a port
// of the containers' bridge, so that there is nothing between QEMU's TCP stack
// and the container.
//
// The product knows nothing of it: a script in the daemon's PATH adds the card to
// QEMU's arguments.
type userNet struct {
	path  string // before the script was put into it
	ports map[string]int
}

const (
	userMAC = "52:54:00:62:65:6e"
	// The containers' network; what QEMU itself is there is at its end.
	userArgs = "user,id=bench,ipv6=off,net=172.17.0.0/16,host=172.17.255.250,dns=172.17.255.251,dhcpstart=172.17.255.252"
	// userHosts is how many of the first addresses are reachable.
	userHosts = 8
)

// newUserNet puts the script into the PATH of what is started from now on.
func newUserNet(dir, binary string, ports ...int) (*userNet, error) {
	real, err := exec.LookPath(binary)
	if err != nil {
		return nil, err
	}
	u := &userNet{path: os.Getenv("PATH"), ports: map[string]int{}}
	netdev := userArgs
	for host := range userHosts {
		for _, port := range ports {
			outside, err := freePort()
			if err != nil {
				return nil, err
			}
			inside := fmt.Sprintf("172.17.0.%d:%d", host+2, port)
			u.ports[inside] = outside
			netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s", outside, inside)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\" -netdev %s -device virtio-net-pci,netdev=bench,romfile=,mac=%s\n", real, netdev, userMAC)
	if err := os.WriteFile(filepath.Join(dir, binary), []byte(script), 0o755); err != nil {
		return nil, err
	}
	return u, os.Setenv("PATH", dir+":"+u.path)
}

// remove lets machines boot without the card again.
func (u *userNet) remove() { os.Setenv("PATH", u.path) }

// joinBridge is for the guest's shell: the card becomes a port of the bridge that
// has the containers' gateway.
const joinBridge = `for d in /sys/class/net/*; do
  n=${d##*/}
  if [ "$(cat $d/address)" = ` + userMAC + ` ]; then card=$n; fi
  if [ -d $d/bridge ] && busybox ip -4 addr show dev $n | grep -q ' 172\.17\.0\.1/'; then bridge=$n; fi
done
busybox brctl addif $bridge $card && busybox ip link set $card up && echo joined
`

// joinUserNet connects the card with the containers.
func (b *bench) joinUserNet(ctx context.Context) error {
	shell := b.command(ctx, "machine", "shell")
	shell.Stdin = strings.NewReader(joinBridge)
	out, err := shell.Output()
	if err != nil || !strings.Contains(string(out), "joined") {
		return fmt.Errorf("QEMU's user-mode networking can't join the containers' bridge: %w: %s", err, out)
	}
	return nil
}

// userAddr is where QEMU forwards to a container's port.
func (b *bench) userAddr(ctx context.Context, container string, port int) (string, error) {
	out, err := b.output(ctx, "inspect", container)
	if err != nil {
		return "", err
	}
	var found []struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return "", err
	}
	for _, c := range found {
		for _, n := range c.NetworkSettings.Networks {
			if outside, ok := b.user.ports[fmt.Sprintf("%s:%d", n.IPAddress, port)]; ok {
				return fmt.Sprintf("127.0.0.1:%d", outside), nil
			}
		}
	}
	return "", fmt.Errorf("QEMU forwards nothing to port %d of container %s", port, container)
}

// dialer dials one address.
func dialer(addr string) dialFunc {
	return func(ctx context.Context, _ uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
}
