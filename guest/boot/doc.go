// Package boot turns a freshly started kernel into a guest that can run
// containers: it is what PID 1 does before and after everything else.
//
// The order, each step a stage that the host is told about:
//
//	init      the agent runs; its root becomes a mount that can be pivoted from
//	mounts    the kernel's file systems, sysctls, loopback
//	modules   drivers for the disk, the shares, vsock and EROFS
//	shares    virtio-fs: image layers and host directories
//	disk      the data disk: made on first use, checked after a crash, mounted
//
// A stage that fails ends the boot: there is no half-working guest. The error
// goes to the console, where the host finds it.
//
// Hazards. The kernel can't pivot_root away from the initramfs, so boot moves
// a bind mount of it over itself (see ownRoot). Nothing here may assume
// that the clock is right: the host sets it later.
package boot
