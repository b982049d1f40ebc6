package boot

import "encoding/binary"

// superblock is the start of a disk, up to the end of where ext2, ext3 and
// ext4 keep theirs (Linux, Documentation/filesystems/ext4/super.rst).
type superblock []byte

const (
	superblockAt  = 1024
	superblockEnd = superblockAt + 1024
)

type diskState int

const (
	stateEmpty   diskState = iota // nothing was ever written here
	stateForeign                  // something else than ext4
	stateClean                    // ext4, unmounted in order
	stateDirty                    // ext4, to be checked
)

// Fields of the superblock, by offset.
const (
	sbBlocksLow    = 0x04 // 32 bits
	sbLogBlockSize = 0x18 // 32 bits, from 1 KiB
	sbBlocksHigh   = 0x150
	sbMountTime    = 0x2c // 32 bits
	sbMountCount   = 0x34 // 16 bits
	sbMagic        = 0x38 // 16 bits
	sbState        = 0x3a // 16 bits
	sbIncompat     = 0x60 // 32 bits
	sbLastMounted  = 0x88 // 64 bytes
	ext4Magic      = 0xef53
	ext4StateValid = 1
	ext4StateError = 2
	incompatReplay = 4    // the journal holds something
	incompat64Bit  = 0x80 // numbers of blocks have a high half
)

func (b superblock) u16(at int) uint16 { return binary.LittleEndian.Uint16(b[superblockAt+at:]) }
func (b superblock) u32(at int) uint32 { return binary.LittleEndian.Uint32(b[superblockAt+at:]) }

func (b superblock) state() diskState {
	if b.u16(sbMagic) != ext4Magic {
		// mke2fs writes the superblock in one piece, so what was cut short
		// has none; the rest of the disk doesn't matter.
		if allZero(b) {
			return stateEmpty
		}
		return stateForeign
	}
	s := b.u16(sbState)
	if s&ext4StateValid == 0 || s&ext4StateError != 0 || b.u32(sbIncompat)&incompatReplay != 0 {
		return stateDirty
	}
	return stateClean
}

// blockSize is in bytes.
func (b superblock) blockSize() uint64 { return 1024 << (b.u32(sbLogBlockSize) & 15) }

// blocks is how many the file system has.
func (b superblock) blocks() uint64 {
	n := uint64(b.u32(sbBlocksLow))
	if b.u32(sbIncompat)&incompat64Bit != 0 {
		n |= uint64(b.u32(sbBlocksHigh)) << 32
	}
	return n
}

// neverMounted is true when nothing but mke2fs has written to the disk. Each
// of these fields alone may be zero on a disk in use (a clock without battery,
// a check that reset the count).
func (b superblock) neverMounted() bool {
	return b.u32(sbMountTime) == 0 && b.u16(sbMountCount) == 0 && allZero(b[superblockAt+sbLastMounted:][:64])
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
