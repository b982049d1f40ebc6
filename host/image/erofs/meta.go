package erofs

// metaBlocks is how many blocks of metadata are gathered before they go to
// the image: reads of many small files then find their inodes side by side.
const metaBlocks = 256

// meta gathers inodes, first fit into blocks.
type meta struct {
	buf    []byte   // whole blocks
	used   []int    // bytes taken in each
	first  int      // blocks before it are as good as full
	inodes []*Inode // in buf; their pos is relative to it
}

// place finds the block for n bytes, len(used) for a new one. More than a
// block is placed in new ones.
func (m *meta) place(n int) int {
	if n <= BlockSize {
		for i := m.first; i < len(m.used); i++ {
			if m.used[i]+n <= BlockSize {
				return i
			}
		}
	}
	return len(m.used)
}

// fits reports whether n bytes find room before the next flush. An empty meta
// has room for anything.
func (m *meta) fits(n int) bool {
	return len(m.used) == 0 || m.place(n)+blocks(n) <= metaBlocks
}

// alloc takes n bytes for an inode.
func (m *meta) alloc(inode *Inode, n int) []byte {
	i := m.place(n)
	for len(m.used) < i+blocks(n) {
		m.used = append(m.used, 0)
	}
	if need := len(m.used) * BlockSize; need > cap(m.buf) {
		m.buf = append(make([]byte, 0, max(need, metaBlocks*BlockSize)), m.buf...)
	}
	m.buf = m.buf[:len(m.used)*BlockSize]
	at := i*BlockSize + m.used[i]
	for left := align(n, slotSize); left > 0; i++ {
		take := min(left, BlockSize-m.used[i])
		m.used[i] += take
		left -= take
	}
	for m.first < len(m.used) && m.used[m.first]+inodeSize > BlockSize {
		m.first++
	}
	inode.pos = int64(at)
	m.inodes = append(m.inodes, inode)
	return m.buf[at : at+n]
}

// flushMeta moves the metadata to the image, which settles the places of its
// inodes.
func (w *Writer) flushMeta() error {
	for _, inode := range w.meta.inodes {
		inode.pos += w.pos
	}
	if err := w.block(w.meta.buf); err != nil {
		return err
	}
	clear(w.meta.buf)
	clear(w.meta.inodes)
	w.meta = meta{buf: w.meta.buf[:0], used: w.meta.used[:0], inodes: w.meta.inodes[:0]}
	return nil
}

func blocks(n int) int { return (n + BlockSize - 1) / BlockSize }

func align(n, to int) int { return (n + to - 1) / to * to }
