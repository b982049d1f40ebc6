// Package share is a FUSE file system that shows directories of the host to a
// guest.
//
// A Tree is what the guest mounts for its bind mounts: a root of its own with
// one entry per Export, added and withdrawn while the guest runs. ReadOnlyDir
// serves one directory, such as the image store. Both answer FUSE requests as
// a vm.FUSEServer, whoever carries them; the guest is taken to be hostile.
//
// # Who may do what
//
// Everything happens as the user that runs the process: a file that the guest
// makes belongs to that user, and what the user may not do fails. Owner, group
// and mode that the guest gave are remembered in the extended attribute
// user.sampan.stat (see record), which the guest doesn't see:
//
//   - What the guest made or chowned has the owner that the guest gave. On the
//     host its mode is the guest's less the process's umask, never with setuid,
//     setgid or sticky bits, and never without read and write (and search) for
//     the user, so that root of the guest can work with a file of mode 0.
//   - What the host made has no record. It belongs to whoever looks: its owner
//     and group are those of the calling process, its mode is the host's
//     without setuid and setgid. So every uid of the guest can work as the user
//     could, and checks of owner against caller (git, ssh) pass.
//   - When somebody on the host changes the mode of a file, the host's mode
//     holds from then on; the owner stays.
//   - Symbolic links, FIFOs and sockets can't carry the attribute, and some file
//     systems have none (vfat, tmpfs before Linux 6.6, many FUSE ones). There
//     the record lives as long as the guest's kernel remembers the inode.
//
// The guest's kernel checks permissions (virtio-fs always does), with cached
// attributes of one owner per inode. It asks again before it says EACCES, so
// several uids work with one file of the host; but a chmod or chown of a
// directory of the host, within the attribute timeout of another uid's look
// at it, can fail with EPERM.
//
// # What the guest can't do
//
// Reach anything but exports: every step is relative to a descriptor, takes
// one name, and never follows a symbolic link on the host (links are text that
// the guest resolves in its own tree), so renames on the host open no hole. An
// export that is withdrawn is gone at once, with all inodes and open files that
// the guest holds. Options.Forbidden stay invisible even inside an export, and
// read-only is enforced here. Device nodes can't be made; setuid bits never
// reach the host.
//
// # Freshness
//
// Changes on the host are seen at the next open or stat: names of files are not
// cached, and neither is their absence, but for a quarter of a second what the
// guest has just made or listed, and for one or two ticks of its clock (4 ms)
// files of 16 MiB and more, which stay cached when they are closed. Directories
// are cached for a second, attributes of open files for a tenth of one. Pages
// stay cached between opens only of a file that has not changed for a while
// (see signature) and that the guest keeps in use: Linux drops an inode, pages
// and all, when the last user of a name that isn't cached goes. The same host
// path exported both ways, or inside another export, is two file systems to the
// guest: one sees the other's changes like the host's, and file locks don't
// meet.
//
// Writes are never kept back in the guest (no write-back cache): its kernel
// would then take size and times of a file for its own, and what the host wrote
// meanwhile would be lost.
//
// # Events
//
// With Options.Replays, watchers in the guest (inotify) see what the host changes:
// see events, which watches, ledger, which knows the guest's own changes, and
// replays, which answers the guest's agent when that makes the host's changes once
// more.
//
// # Limits
//
// Each inode that the guest works with has a descriptor (O_PATH). Those that it
// only remembers lose theirs when Options.MaxFiles of them are open, and get it
// back by name; what the host has moved or replaced meanwhile is stale then, and
// the guest looks its name up again. ENFILE is for more open files than that.
// Errors that a network file system tells only at close are told by fsync, not
// by close.
//
// A request that hangs in a host's file system holds up its caller, and one of
// its ring's workers (see vm/vhostuser); the guest's next boot begins with a
// table of its own.
package share
