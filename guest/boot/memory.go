package boot

import (
	"fmt"
	"os"
	"path/filepath"
)

// memorySysctls are about memory that the kernel sets aside, which neither
// containers nor the host can use. Its defaults are for machines that have
// plenty, and for devices that are not here.
var memorySysctls = []sysctl{
	// Where huge pages are possible, the kernel keeps 44 MiB of 2 GiB free to
	// make them of. Without them it would keep 5.5; between the marks at which
	// it begins and ends to reclaim there are 0.1 % of the memory in any case.
	{name: "vm/min_free_kbytes", value: "4096"},
	// No device here is limited to the memory below 16 MiB or 4 GiB. Three
	// zones are what any kernel knows.
	{name: "vm/lowmem_reserve_ratio", value: "0 0 0"},
	// Processors keep lists of free pages, by default of up to an eighth of the
	// memory: these count as used, and don't go back to the host.
	{name: "vm/percpu_pagelist_high_fraction", value: "1024"},
}

// bootOnly are files that nothing needs once the boot is done.
var bootOnly = []string{"lib", "lib64", "sbin/mke2fs", "sbin/mkfs.ext4", "sbin/e2fsck", "etc/mke2fs.conf"}

// shedRoot deletes what only the boot needed: the root is in memory.
func shedRoot(root string) error {
	for _, name := range bootOnly {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return fmt.Errorf("delete what only the boot needs: %w", err)
		}
	}
	return nil
}
