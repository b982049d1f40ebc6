package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"sort"
	"strings"
)

// BlockSize of every image.
const BlockSize = 4096

const (
	magic       = 0xE0F5E1E2
	superOffset = 1024
	superSize   = 128
	slotSize    = 32 // unit of node ids
	inodeSize   = 64 // extended inodes: each has its own time, 32-bit owners
	rootOffset  = superOffset + superSize
	nlinkOffset = 44 // of the link count in an inode
	direntSize  = 12
	// MaxName is the longest name in a directory.
	MaxName = 255

	compatChecksum = 0x1
	compatMtime    = 0x2 // the inode's time is the time of modification

	layoutPlain  = 0 << 1
	layoutInline = 2 << 1
	extended     = 1
)

// File type bits of a mode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeBlock   = 0o060000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// Attr is what an inode carries besides its contents.
type Attr struct {
	// Mode as in stat(2): type, setuid, setgid, sticky, permissions. Required.
	Mode     uint16
	UID, GID uint32
	// Seconds and nanoseconds since the Unix epoch, when it was modified.
	Sec  int64
	Nsec uint32
	// Rdev of a device, see Rdev.
	Rdev uint32
	// Xattrs by full name, e.g. "user.a". See XattrSupported.
	Xattrs map[string]string
}

// Rdev encodes a device number as the kernel's new_encode_dev does. It
// reports whether the numbers fit (12 and 20 bits).
func Rdev(major, minor int64) (uint32, bool) {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return 0, false
	}
	return uint32(minor&0xff | major<<8 | (minor&^0xff)<<12), true
}

// direntType is the type of file in a directory entry (FT_* of the kernel).
func direntType(mode uint16) byte {
	switch mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}

// xattrNamespace splits a name into the number of its namespace and the rest
// that is stored. The first two names have no rest.
func xattrNamespace(name string) (index byte, rest string, ok bool) {
	switch name {
	case "system.posix_acl_access":
		return 2, "", true
	case "system.posix_acl_default":
		return 3, "", true
	}
	for _, ns := range [...]struct {
		prefix string
		index  byte
	}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}} {
		if rest, ok := strings.CutPrefix(name, ns.prefix); ok && rest != "" && len(rest) <= 255 {
			return ns.index, rest, true
		}
	}
	return 0, "", false
}

// XattrSupported reports whether an image can hold an attribute of that name.
func XattrSupported(name string) bool {
	_, _, ok := xattrNamespace(name)
	return ok
}

// encodeXattrs gives the bytes that follow the inode, nil for none. Every name
// must be supported and every value at most 65,535 bytes; count is the number
// that the inode keeps.
func encodeXattrs(xattrs map[string]string) (body []byte, count int) {
	if len(xattrs) == 0 {
		return nil, 0
	}
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		names = append(names, name)
	}
	sort.Strings(names)
	body = make([]byte, 12) // header: no filter, nothing shared
	for _, name := range names {
		index, rest, _ := xattrNamespace(name)
		value := xattrs[name]
		body = append(body, byte(len(rest)), index)
		body = binary.LittleEndian.AppendUint16(body, uint16(len(value)))
		body = append(body, rest...)
		body = append(body, value...)
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
	}
	return body, 1 + (len(body)-12)/4
}

// putInode encodes an extended inode into b. data is the first block of its
// contents, or its device number.
func putInode(b []byte, layout uint16, xattrCount int, a *Attr, size int64, data, ino, nlink uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], layout|extended)
	le.PutUint16(b[2:], uint16(xattrCount))
	le.PutUint16(b[4:], a.Mode)
	le.PutUint64(b[8:], uint64(size))
	le.PutUint32(b[16:], data)
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], a.UID)
	le.PutUint32(b[28:], a.GID)
	le.PutUint64(b[32:], uint64(a.Sec))
	le.PutUint32(b[40:], a.Nsec)
	le.PutUint32(b[nlinkOffset:], nlink)
}

// putSuper encodes the superblock into block 0, which is otherwise complete.
func putSuper(block []byte, inodes uint64, blocks uint32, uuid [16]byte) {
	le := binary.LittleEndian
	b := block[superOffset:]
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = 12 // log2 of the block size
	le.PutUint16(b[14:], rootOffset/slotSize)
	le.PutUint64(b[16:], inodes)
	le.PutUint32(b[36:], blocks)
	copy(b[48:64], uuid[:])
	// The kernel's crc32c is not inverted at the end, Go's is.
	sum := ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(b[4:], sum)
}
