// Package erofs writes EROFS images: uncompressed, 4096-byte blocks, readable
// by any kernel since 5.4. It knows inodes and directories, not tar.
//
// An image is written front to back while its files arrive, so that memory
// holds the names and not the contents:
//
//	block 0     superblock at 1024, root inode at 1152 (node id 36)
//	blocks      file contents; between them, whenever a megabyte of it has
//	            gathered, metadata: inodes with extended attributes and the
//	            last partial block of their file ("tail packing")
//	directories their inodes first, then their full blocks
//
// A node id is an inode's byte offset divided by 32. The root's has 16 bits,
// hence its place in block 0. Link counts of inodes that got more than one
// name are patched in place at the end, as is block 0: these are the only
// writes that go back.
//
// Hazards, all enforced by the kernel when a file is read and not before:
//   - a packed tail must lie in one block, and for a symbolic link in the
//     block of its inode;
//   - directory entries are sorted by byte value across all blocks, "." and
//     ".." among them; every block starts a new name table;
//   - an extended attribute's name is stored without its namespace, whose
//     number leads it; of access control lists nothing but the number is left;
//   - the checksum covers block 0 from the superblock to its end.
//
// The same calls give the same bytes. Format: include erofs_fs.h of Linux and
// Documentation/filesystems/erofs.rst.
package erofs
