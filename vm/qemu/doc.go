// Package qemu runs machines as QEMU processes on Linux, under KVM or TCG.
//
// Every channel between this process and QEMU is a socket pair that QEMU
// inherits; nothing has a name in the file system or a port:
//
//	QEMU                                   this process
//	  monitor (QMP)          stream   ───  client: cont, quit, events
//	  serial port            stream   ───  console: tail, Config.Console
//	  vhost-user-vsock-pci   stream   ───  vhostuser.Serve(Vsock)
//	  vhost-user-fs-pci, …   stream   ───  vhostuser.Serve(FS), one per share
//	  virtio-net-pci         datagram ───  Config.NIC: a datagram is a frame
//
// Boot's stages: "process" is reached with QMP's greeting, "devices" with the
// first message to the last of the vhost-user backends, "kernel" with the
// serial port's first byte. SeaBIOS prints nothing there as long as the
// machine has no graphics=off, so that byte is the kernel's.
//
// Hazards:
//
//   - Pdeathsig follows the thread that started QEMU, not the process. That
//     thread is locked for the machine's life.
//   - QEMU can't re-attach to a vhost-user backend. When one ends, the machine
//     is killed.
//   - Under TCG the CPU must have cx16=off: with plain max, kernel 6.12
//     panics on more than half of its boots (QEMU 7.2).
//   - The default werror=enospc pauses the whole machine when the host's disk
//     is full; the guest gets the error instead.
package qemu
