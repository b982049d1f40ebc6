// Package network connects the guest with the host's network.
//
// Outbound, a user-mode TCP/IP stack (gvisor-tap-vsock) answers the guest's
// network card and opens each connection as a socket of this process, so that
// VPNs, firewalls and the host's resolver apply. Inbound, a published port is a
// listener of this process whose connections travel over vsock to the guest's
// agent, which dials the container: no address of the machine is ever needed.
//
// The guest's side, fixed in the private range that gvisor-tap-vsock uses by
// default:
//
//	192.168.127.1    gateway, DNS (the host's resolver)
//	192.168.127.2    the guest
//	192.168.127.254  the host's loopback (host.docker.internal)
package network
