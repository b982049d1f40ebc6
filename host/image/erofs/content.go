package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Pos is where the image has the inode, for OpenContent: known, and final,
// once Writer.Close has returned.
func (i *Inode) Pos() int64 { return i.pos }

// OpenContent reads the contents of the regular file whose inode an image of
// this package has at pos, and tells their size.
func OpenContent(image io.ReaderAt, pos int64) (io.Reader, int64, error) {
	var b [inodeSize]byte
	if pos < 0 || pos%slotSize != 0 {
		return nil, 0, fmt.Errorf("no inode at %d", pos)
	}
	if _, err := image.ReadAt(b[:], pos); err != nil {
		return nil, 0, fmt.Errorf("inode at %d: %w", pos, unexpected(err))
	}
	le := binary.LittleEndian
	layout, mode, size := le.Uint16(b[0:])&^extended, le.Uint16(b[4:]), int64(le.Uint64(b[8:]))
	if mode&TypeMask != TypeRegular || size < 0 {
		return nil, 0, fmt.Errorf("inode at %d is not a file's", pos)
	}
	start := int64(le.Uint32(b[16:])) * BlockSize
	switch layout {
	case layoutPlain:
		return io.NewSectionReader(image, start, size), size, nil
	case layoutInline:
		full := size / BlockSize * BlockSize
		at := pos + inodeSize
		if n := int64(le.Uint16(b[2:])); n > 0 {
			at += 12 + (n-1)*4
		}
		return io.MultiReader(io.NewSectionReader(image, start, full), io.NewSectionReader(image, at, size-full)), size, nil
	}
	return nil, 0, errors.New("inode of an unknown layout")
}
