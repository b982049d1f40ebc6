package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
)

// directory is what an Inode that is one has besides.
type directory struct {
	attr    Attr
	parent  *Inode
	entries map[string]*Inode
}

// Attr of a directory.
func (i *Inode) Attr() Attr { return i.dir.attr }

// SetAttr changes the attributes of a directory.
func (i *Inode) SetAttr(a Attr) {
	a.Mode = a.Mode&^TypeMask | TypeDir
	i.mode = a.Mode
	i.dir.attr = a
}

// Parent of a directory that has a name; the root's is the root.
func (i *Inode) Parent() *Inode { return i.dir.parent }

// Lookup finds an entry of a directory, or nil.
func (i *Inode) Lookup(name string) *Inode { return i.dir.entries[name] }

// Link gives inode a name in the directory dir, instead of what had it. A
// directory can have one name only.
func (w *Writer) Link(dir *Inode, name string, inode *Inode) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%q is not a name", name)
	case len(name) > MaxName:
		return fmt.Errorf("name of %d bytes: at most %d", len(name), MaxName)
	case inode.dir != nil && inode.links > 0:
		return fmt.Errorf("hard link %q to a directory", name)
	}
	inode.links++ // first: it may lie below what it replaces
	w.Unlink(dir, name)
	dir.dir.entries[name] = inode
	if inode.dir != nil {
		inode.dir.parent = dir
	} else if inode.links > 1 && !inode.many {
		inode.many = true
		w.linked = append(w.linked, inode)
	}
	return nil
}

// Unlink removes a name from a directory, and what it names with everything
// below if that was its last.
func (w *Writer) Unlink(dir *Inode, name string) {
	inode := dir.dir.entries[name]
	if inode == nil {
		return
	}
	delete(dir.dir.entries, name)
	// Not recursive: a hostile tree can be deeper than any stack.
	for gone := []*Inode{inode}; len(gone) > 0; {
		inode, gone = gone[len(gone)-1], gone[:len(gone)-1]
		inode.links--
		switch {
		case inode.dir != nil:
			gone = slices.AppendSeq(gone, maps.Values(inode.dir.entries))
			inode.dir.entries = nil
		case inode.links == 0:
			w.inodes--
		}
	}
}

// layoutEntry is a directory with its place in the image.
type layoutEntry struct {
	inode  *Inode
	names  []string
	size   int64
	inline bool   // the last block lies behind the inode
	start  uint32 // first block of its own
}

// directories writes all directories that have a name, and the root's inode
// into head, which is block 0. It returns how many there are.
func (w *Writer) directories(head []byte) (int, error) {
	list := []*layoutEntry{{inode: w.root}}
	w.root.pos = rootOffset
	base, at := w.pos, int64(0)
	for n := 0; n < len(list); n++ {
		e := list[n]
		e.names = slices.AppendSeq(make([]string, 0, len(e.inode.dir.entries)+2), maps.Keys(e.inode.dir.entries))
		e.names = append(e.names, ".", "..")
		sort.Strings(e.names)
		e.size = direntBytes(e.names)
		xattrs, _, err := w.xattrs(&e.inode.dir.attr)
		if err != nil {
			return 0, err
		}
		room := inodeSize + len(xattrs)
		tail := int(e.size % BlockSize)
		if n == 0 {
			if rootOffset+room > BlockSize {
				return 0, fmt.Errorf("root directory has %d bytes of extended attributes: at most %d", len(xattrs), BlockSize-rootOffset-inodeSize)
			}
			e.inline = tail > 0 && rootOffset+room+tail <= BlockSize
		} else {
			if e.inline = tail > 0 && room+tail <= BlockSize; e.inline {
				room += tail
			}
			if left := BlockSize - at%BlockSize; left < int64(room) {
				at += left % BlockSize
			}
			e.inode.pos = base + at
			at += int64(align(room, slotSize))
		}
		for _, name := range e.names {
			if child := e.inode.dir.entries[name]; child != nil && child.dir != nil {
				list = append(list, &layoutEntry{inode: child})
			}
		}
	}
	next := uint32((base + at + BlockSize - 1) / BlockSize)
	for _, e := range list {
		full := e.size
		if e.inline {
			full -= e.size % BlockSize
		}
		if full > 0 {
			e.start = next
			next += uint32((full + BlockSize - 1) / BlockSize)
		}
	}
	return len(list), w.writeDirs(list, head)
}

// writeDirs writes what directories has laid out.
func (w *Writer) writeDirs(list []*layoutEntry, head []byte) error {
	var scratch []byte
	for n, e := range list {
		xattrs, count, err := w.xattrs(&e.inode.dir.attr)
		if err != nil {
			return err
		}
		nlink, layout := uint32(2), uint16(layoutPlain)
		for _, child := range e.inode.dir.entries {
			if child.dir != nil {
				nlink++
			}
		}
		scratch = append(scratch[:0], make([]byte, inodeSize)...)
		scratch = append(scratch, xattrs...)
		if e.inline {
			layout = layoutInline
			scratch = appendDirents(scratch, e, lastBlock(e.names))
		}
		putInode(scratch, layout, count, &e.inode.dir.attr, e.size, e.start, w.serial+uint32(n)+1, nlink)
		if n == 0 {
			copy(head[rootOffset:], scratch)
			continue
		}
		if err := w.zeros(e.inode.pos - w.pos); err != nil {
			return err
		}
		if err := w.block(scratch); err != nil {
			return err
		}
	}
	w.pad()
	for _, e := range list {
		names := e.names
		for len(names) > 0 {
			n := fit(names)
			if n == len(names) && e.inline {
				break
			}
			scratch = appendDirents(scratch[:0], e, names[:n])
			if err := w.block(scratch); err != nil {
				return err
			}
			w.pad()
			names = names[n:]
		}
	}
	return nil
}

func (w *Writer) zeros(n int64) error {
	var zero [BlockSize]byte
	for n > 0 {
		take := min(n, BlockSize)
		if err := w.block(zero[:take]); err != nil {
			return err
		}
		n -= take
	}
	return nil
}

// fit is how many of the names go into one block.
func fit(names []string) int {
	used := 0
	for n, name := range names {
		used += direntSize + len(name)
		if used > BlockSize {
			return n
		}
	}
	return len(names)
}

// lastBlock is the names that are in the last block.
func lastBlock(names []string) []string {
	for {
		n := fit(names)
		if n == len(names) {
			return names
		}
		names = names[n:]
	}
}

// direntBytes is the size of a directory: full blocks and what the last takes.
func direntBytes(names []string) int64 {
	var size int64
	for {
		n := fit(names)
		if n < len(names) {
			size += BlockSize
			names = names[n:]
			continue
		}
		for _, name := range names {
			size += int64(direntSize + len(name))
		}
		return size
	}
}

// appendDirents encodes one block's entries, without padding.
func appendDirents(b []byte, e *layoutEntry, names []string) []byte {
	le := binary.LittleEndian
	offset := direntSize * len(names)
	for _, name := range names {
		var child *Inode
		switch name {
		case ".":
			child = e.inode
		case "..":
			child = e.inode.dir.parent
		default:
			child = e.inode.dir.entries[name]
		}
		b = le.AppendUint64(b, uint64(child.pos/slotSize))
		b = le.AppendUint16(b, uint16(offset))
		b = append(b, direntType(child.mode), 0)
		offset += len(name)
	}
	for _, name := range names {
		b = append(b, name...)
	}
	return b
}
