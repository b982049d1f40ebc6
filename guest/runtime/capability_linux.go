package runtime

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"sampan/guest/runtime/stage2"
)

// capabilityNames are in the order of their numbers
// (include/uapi/linux/capability.h).
const capabilityNames = `chown dac_override dac_read_search fowner fsetid kill
setgid setuid setpcap linux_immutable net_bind_service net_broadcast net_admin
net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct
sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm
block_suspend audit_read perfmon bpf checkpoint_restore`

// capabilitySet is the bits of a list of names like "CAP_CHOWN". What this
// kernel doesn't know is left out, as a container can't have it.
func capabilitySet(names []string, lastCap int) (uint64, error) {
	var set uint64
	known := strings.Fields(capabilityNames)
next:
	for _, name := range names {
		short, ok := strings.CutPrefix(name, "CAP_")
		for n, k := range known {
			if ok && short == strings.ToUpper(k) {
				if n <= lastCap {
					set |= 1 << n
				}
				continue next
			}
		}
		return 0, fmt.Errorf("capability %q: unknown", name)
	}
	return set, nil
}

// planCapabilities sets the five sets. Without any the process has none.
func planCapabilities(plan *stage2.Process, caps *specs.LinuxCapabilities) error {
	if caps == nil {
		return nil
	}
	for _, s := range []struct {
		names []string
		set   *uint64
	}{
		{caps.Bounding, &plan.Bounding},
		{caps.Effective, &plan.Effective},
		{caps.Permitted, &plan.Permitted},
		{caps.Inheritable, &plan.Inheritable},
		{caps.Ambient, &plan.Ambient},
	} {
		var err error
		if *s.set, err = capabilitySet(s.names, plan.LastCap); err != nil {
			return err
		}
	}
	return nil
}
