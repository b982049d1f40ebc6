// Package engine is the state machine behind the Docker Engine API:
// containers, execs, volumes, networks and events.
//
// # A container
//
//	          create                start
//	(nothing) ------> created ------------------> running
//	                     |      <--- restart ---     |
//	                     | remove    exited <--------| exit, VM gone
//	                     v              |  ^         |
//	                 (nothing) <--------+  +-- restarting (back-off)
//
// Each container is one record, $SAMPAN_HOME/containers/ID/config.json,
// replaced by an atomic rename at every change of state; records of --rm
// containers are not fsynced, since nothing of them is meant to outlive a power
// cut. The machine's life is tied to the daemon's, so a record that says
// "running" when the daemon starts becomes "exited (255)".
//
// # Locks
//
// Three kinds, always taken in this order, and only op is held while the guest
// is called:
//
//	container.op   one start or removal of this container at a time
//	Engine.mu      the index: IDs, names, volumes, addresses
//	container.mu   one container's state
//
// An anonymous volume is its container's: its record is made after the
// container's and removed before it, and what a crash has cut off in between the
// next start completes (completeCreates, completeRemovals).
//
// # Output
//
// The agent carries each stream over its own connection; a pump reads it, has
// it written to the log (json.log, Docker's json-file format), and hands it to
// the attached clients.
//
//	agent ══ vsock ══> pump ──> json.log ──> any number of logs -f, each at its
//	                     │                   own pace, reading the file
//	                     └────> attached clients, a queue each: 1 MiB in memory,
//	                            then up to 1 GiB in a file without a name
//
// The log is always written first and no reader of the log can delay it.
// Attaching is lossless. A client that reads slowly, or not at all, delays
// neither the log nor other clients nor the container's end: what it has not
// read waits in its queue (maxQueue, maxSpill; spill.go). Only when that is
// full, or the disk is, the pump waits for the client, and with it the
// container, as Docker's does after 1 MB: better than to lose output or to fill
// the disk.
//
// # What the guest holds
//
// Writable layers and volumes live on the data disk. Removing a container or a
// volume never boots the machine: when it does not run, the removal is written
// to purge.json and carried out at the next boot. A volume's directory has a
// random name of its own, so a volume that is made again under an old name
// never shows the old one's files.
package engine
