package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"sampan/vm"
)

// wires are the numbers that the inherited descriptors have in QEMU.
type wires struct {
	qmp, console, vsock int
	net                 int   // only with a network card
	shares              []int // one per share, in order
}

// board is what differs between the architectures of a guest.
type board struct {
	binary  string // name of QEMU's program
	pkg     string // Debian's package with it
	machine string // -machine, without the memory
	console string // the serial port's name in the guest
	tcgCPU  string // -cpu under TCG
	tcgArgs string // kernel arguments under TCG
	// ticks, where it is not 0, is the kernel's CONFIG_HZ: with the frequency of the
	// time stamp counter it makes lpj.
	ticks float64
	// copies says that QEMU copies the initramfs as it starts, where elsewhere the
	// guest's firmware asks for it.
	copies bool
}

// boards by GOARCH.
//
// TCG's CPU: cx16=off for a bug (package doc). erms=off,fsrm=off because Linux
// and C libraries would else copy and clear by "rep movsb" and "rep stosb",
// which the translator does byte by byte: without, a read of vsock costs a
// third.
//
// TCG's arguments: maxcpus=1 because the kernel patches its own code while it
// boots, and the translator does not always show that to a second processor in
// time (one boot in thirty died in sched_clock_cpu); the guest brings the others
// up last. noreplace-smp has it keep the locks that one processor could do
// without: to patch them in again for the second took 0.2 s.
// no_ipi_broadcast=1 saves the patch that the last one would bring.
// mitigations=off because what they keep the processor from guessing is not what
// the translator has it run: every indirect call goes by the translator's own table,
// and a detour before it (retpoline) only takes twice as long.
// init_on_alloc=1 because the translator does not notice when a device writes to
// a page that held code. noapictimer would save 0.2 s of calibration, but costs
// the high-resolution timers: a sleep of 1 ms takes 4.
//
// pauth-impdef=on: kernel and programs sign their return addresses, and the
// architecture's own algorithm for it takes the translator longer than the
// functions.
func boards() map[string]board {
	return map[string]board{
		"amd64": {
			binary:  "qemu-system-x86_64",
			pkg:     "qemu-system-x86",
			machine: "q35,usb=off,vmport=off,smbus=off,sata=off",
			console: "ttyS0",
			tcgCPU:  "max,cx16=off,erms=off,fsrm=off",
			tcgArgs: "init_on_alloc=1 maxcpus=1 noreplace-smp no_ipi_broadcast=1 mitigations=off",
			ticks:   250,
		},
		"arm64": {
			binary:  "qemu-system-aarch64",
			pkg:     "qemu-system-arm",
			machine: "virt,gic-version=max",
			console: "ttyAMA0",
			tcgCPU:  "max,pauth-impdef=on",
			tcgArgs: "init_on_alloc=1",
			copies:  true,
		},
	}
}

// guestCID is the guest's vsock address. It means something only inside this
// one machine: the device is ours, not the host kernel's.
const guestCID = 3

// argv is QEMU's command line, without the program's name. hertz is the frequency
// of the host's time stamp counter; 0 where it is unknown.
func argv(cfg vm.Config, b board, acc accelerator, hertz float64, w wires) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", b.machine + ",memory-backend=ram",
	}
	switch acc {
	case kvm:
		args = append(args, "-accel", "kvm", "-cpu", "host")
	case tcg:
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", b.tcgCPU)
	}
	mib := strconv.FormatInt(cfg.Memory>>20, 10) + "M"
	args = append(args,
		"-smp", strconv.Itoa(cfg.CPUs),
		"-m", mib,
		"-object", "memory-backend-memfd,id=ram,share=on,size="+mib,
		"-kernel", cfg.Kernel,
		"-initrd", cfg.Initrd,
		"-append", cmdline(cfg.Cmdline, b, acc, hertz),
		"-chardev", "socket,id=qmp,fd="+strconv.Itoa(w.qmp),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=console,fd="+strconv.Itoa(w.console),
		"-serial", "chardev:console",
		"-device", "virtio-rng-pci",
		"-device", "virtio-balloon-pci,free-page-reporting=on",
		"-chardev", "socket,id=vsock,fd="+strconv.Itoa(w.vsock),
		"-device", "vhost-user-vsock-pci,chardev=vsock",
	)
	if cfg.Ready != nil {
		args = append(args, "-S") // the guest waits for "cont"
	}
	for i, s := range cfg.Shares {
		// 1024 descriptors let the guest ask for 1 MiB at once.
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=share%d,fd=%d", i, w.shares[i]),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=share%d,queue-size=1024,num-request-queues=%d,tag=%s", i, requestQueues(cfg.CPUs), escape(s.Tag)))
	}
	if len(cfg.Disks) > 0 {
		args = append(args, "-object", "iothread,id=disks")
	}
	for i, d := range cfg.Disks {
		args = append(args, disk(i, d)...)
	}
	if cfg.NIC != nil {
		args = append(args,
			"-netdev", "dgram,id=net,local.type=fd,local.str="+strconv.Itoa(w.net),
			"-device", "virtio-net-pci,netdev=net,romfile=,mac="+cfg.NIC.MAC.String())
	}
	return args
}

// requestQueues of a share: the guest (from Linux 6.11) gives each processor its
// own, which saves it a lock and a wake-up on another; more than a few don't help.
func requestQueues(cpus int) int { return min(cpus, 4) }

// disk is a raw file with the host's page cache. A guest's discard frees the
// file's blocks; errors go to the guest.
func disk(i int, d vm.Disk) []string {
	mode := "read-only=off,discard=unmap"
	if d.ReadOnly {
		mode = "read-only=on"
	}
	return []string{
		"-blockdev", fmt.Sprintf("driver=file,node-name=file%d,%s,filename=%s", i, mode, escape(d.Path)),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=disk%d,%s,file=file%d", i, mode, i),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,iothread=disks,werror=report,rerror=report,serial=%s", i, escape(d.Serial)),
	}
}

// cmdline puts the driver's kernel arguments before the caller's: where one is
// given twice, Linux lets the last win.
//
// Without lpj the kernel takes 0.1 s to calibrate the second processor's delay loop,
// and a whole processor of the host meanwhile.
func cmdline(extra string, b board, acc accelerator, hertz float64) string {
	parts := []string{"console=" + b.console, "panic=-1", "loglevel=6", "cryptomgr.notests"}
	if acc == tcg {
		parts = append(parts, b.tcgArgs)
		if b.ticks > 0 && hertz > 0 {
			parts = append(parts, fmt.Sprintf("lpj=%.0f", hertz/b.ticks))
		}
	}
	if extra != "" {
		parts = append(parts, extra)
	}
	return strings.Join(parts, " ")
}

// escape doubles commas, as QEMU's option parser wants them in a value. It
// knows no other special characters there.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
