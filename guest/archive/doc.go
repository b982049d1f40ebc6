// Package archive makes tar streams of a container's files, and unpacks them
// there.
//
// A Root is a directory that no path leads out of: every path is looked up by
// the kernel with that directory as its root (openat2, RESOLVE_IN_ROOT), and
// everything below what was looked up is reached by descriptors, one name at a
// time, without following symbolic links. A container that runs may exchange
// files, directories and links meanwhile, as quickly as it likes; it changes
// which of its own files are meant, never whose.
//
//	Pack      a path, as `docker cp CONTAINER:PATH -` has it
//	Export    everything, as `docker export` has it
//	Unpack    a tar into a directory, as `docker cp - CONTAINER:PATH` does
//	Changes   what a writable layer adds, changes and deletes (`docker diff`)
//	Layer.Pack the same as an image's layer, with whiteouts (`docker commit`)
//
// Rules that are Docker's, not ours: names are relative and those of
// directories end in a slash; times have whole seconds; of extended attributes
// only capabilities travel; sockets don't.
package archive
