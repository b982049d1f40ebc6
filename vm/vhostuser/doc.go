// Package vhostuser is the back end of virtio devices that QEMU hands out over
// a socket ("vhost-user"): the transport, and on it the vsock and the
// virtio-fs device.
//
// QEMU (the front end) keeps the PCI side of the device: its registers,
// feature negotiation and interrupts. What reaches us is a socket with
// messages, and with them descriptors: the guest's memory, and two eventfds
// per virtqueue, "kick" (the guest has put something into the ring) and "call"
// (interrupt the guest).
//
//	QEMU ── socket pair ── Serve ── one goroutine per ring ── Device.Serve(q)
//	guest memory (memfd, mapped shared) ─────────── q.Pop ─ Chain ─ q.Push
//	kick eventfd ─────────────────────────────────────┘             │
//	call eventfd ───────────────────────────────────────────────────┘
//
// The life of a ring:
//
//	           SET_VRING_NUM, ADDR, BASE, KICK (, ENABLE 1)
//	stopped ──────────────────────────────────────────────▶ running
//	        ◀──────────────────────────────────────────────
//	           GET_VRING_BASE, ENABLE 0, end of the socket
//
// A Queue is one run of a ring; the next start makes a new Queue. Rings start
// and stop with the guest's driver, at a reset, and when the machine is
// paused.
//
// Hazards. All of guest memory changes at any moment, under a guest that may
// be hostile: read a field once, check it, then use it; hand out nothing but
// bounded slices. The memory stays mapped for as long as anybody holds a
// Chain. Go has no 16-bit atomics: ring indices are read as part of the
// aligned 32-bit word around them. Little-endian hosts only (byteorder.go). When the socket
// ends QEMU can't attach again, so the machine is as good as dead.
//
// Sources: docs/interop/vhost-user.rst of QEMU; virtio 1.2, 2.7 (split rings)
// and 5.10 (socket device).
package vhostuser
