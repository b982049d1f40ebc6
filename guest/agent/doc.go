// Package agent is the guest's side of the protocol (proto/agent.proto): it
// runs containers, and carries their bytes.
//
// A Service answers the verbs. It keeps no state beyond the machine's life and
// shares no state machine with the host: a container is there between Start
// and Remove, a process runs until Wait has its exit code.
//
//	Start ─┬─ layers ── overlay ── volumes, files ─┐
//	       ├─ streams (pending table) ─────────────┼─ runtime.Create ── Start
//	       └─ bridges ─────────────────────────────┘      └ interfaces
//
// What Start does in the guest's mount namespace, by container:
//
//	/run/sampan/containers/ID/rootfs    overlay of the layers and the upper directory
//	/run/sampan/containers/ID/files     hosts, hostname, resolv.conf
//	/run/sampan/containers/ID/mounts/N  binds of host directories, pinned by descriptor
//
// Streams come in either order with the call that uses them: a Streams table
// holds those that nobody has asked for yet, bounded in number and time.
//
// Hazards. Paths inside an image or a host share are chosen by somebody else:
// they are only ever opened with openat2, never joined to a string. A stream
// whose host has gone away is drained, or the process behind it would hang.
// Nothing on the way of Start runs a program: a fork costs 42 ms under
// emulation.
package agent
